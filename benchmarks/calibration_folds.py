"""How far probabilities are off, seen on all photos: 294 test photos cannot show an error of 2 %, some 3,000 can.

    handlens train FLOWERS --net mobilenet_v2 --weights FILE --mode head --folds 10 --out FOLDS
    handlens train FLOWERS --net mobilenet_v2 --weights FILE --mode full --folds 5 --out FOLDS
    python benchmarks/calibration_folds.py FOLDS --photos FLOWERS

Each photo is judged once, by the run that did not see it, with the temperature that this run's own validation photos
gave; beside it vector scaling (arXiv 1706.04599), fitted on the same photos. Adds its figures, by net and mode, to
benchmarks/results/calibration_folds.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from handlens import checkpoint, evaluate, files, run
from handlens.cli.labelled import runs_split
from handlens.evaluate import calibration, metrics
from handlens.evaluate.calibration import softmax
from handlens.train.judge import versions

RESULTS = Path(__file__).resolve().parent / "results" / "calibration_folds.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", type=Path, help="what `handlens train --folds` wrote")
    parser.add_argument("--photos", required=True)
    given = parser.parse_args()
    runs = sorted(path.parent for path in given.folds.glob(f"*/{files.FACTS}"))
    if not runs:
        raise SystemExit(f"{given.folds} has no runs: see --help for the command that makes them")
    logits, labels, temperatures, vectors = [], [], [], []
    for folder in runs:
        classifier = run.load(folder)
        scores, chosen_by = (
            evaluate.score(
                classifier.infer,
                runs_split(str(folder), given.photos, split).photos.as_classes(classifier.classes),
                classifier.preprocess,
            )
            for split in ("test", "validation")
        )
        logits.append(scores.logits)
        labels.append(scores.labels)
        vectors.append(softmax(by_vector(chosen_by.logits, chosen_by.labels, scores.logits)))
        found = checkpoint.read_facts(folder)["calibration"]
        temperatures.append(found["temperature"] if found else 1.0)
        print(folder.name, len(scores.labels), f"{scores.top1:.3f}", f"{temperatures[-1]:.2f}", flush=True)
    truth = np.concatenate(labels)
    scaled = [softmax(own, temperature) for own, temperature in zip(logits, temperatures, strict=True)]
    facts = checkpoint.read_facts(runs[0])
    top1 = float((np.concatenate(scaled).argmax(1) == truth).mean())
    result = {
        "date": datetime.date.today().isoformat(), "versions": versions(), "num_folds": len(runs),
        "num_photos": len(truth), "temperatures": temperatures,
        "top1": top1, "top1_ci95": metrics.wilson(round(top1 * len(truth)), len(truth)),
        "before": calibration.summary(softmax(np.concatenate(logits)), truth),
        "after": calibration.summary(np.concatenate(scaled), truth),
        "by_vector": calibration.summary(np.concatenate(vectors), truth),
    }  # fmt: skip
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    results["command"] = __doc__.split("\n\n")[1]
    results.setdefault("runs", {})[f"{facts['net']}_{facts['recipe']['mode']}"] = result
    files.write_json(RESULTS, results)
    for side in ("before", "after", "by_vector"):
        print(side, {key: value for key, value in result[side].items() if key != "bins"})


def by_vector(logits: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`others` times a factor and plus a bias a class: those with the least cross-entropy on (N, K) `logits`."""
    count, num_classes = logits.shape
    wanted = np.eye(num_classes)[labels] * (1 - 1 / (count + 2)) + 1 / (count + 2) / num_classes

    def loss(given: np.ndarray) -> float:
        return float(-(wanted * log_softmax(logits * given[:num_classes] + given[num_classes:], 1)).sum(1).mean())

    best = minimize(loss, np.concatenate([np.ones(num_classes), np.zeros(num_classes)])).x
    return np.asarray(others * best[:num_classes] + best[num_classes:])


if __name__ == "__main__":
    main()
