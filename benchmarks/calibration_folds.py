"""How far probabilities are off, seen on all photos: 294 test photos cannot show an error of 2 %, some 3,000 can.

    handlens train FLOWERS --net mobilenet_v2 --weights FILE --mode head --folds 10 --out FOLDS
    python benchmarks/calibration_folds.py FOLDS --photos FLOWERS

Each photo is judged once, by the run that did not see it, with the temperature that this run's own validation photos
gave. Writes benchmarks/results/calibration_folds.json.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np

from handlens import checkpoint, evaluate, files, run
from handlens.cli.evaluate import runs_split
from handlens.evaluate import calibration
from handlens.evaluate.calibration import softmax
from handlens.train.job import versions

RESULTS = Path(__file__).resolve().parent / "results" / "calibration_folds.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", type=Path, help="what `handlens train --folds` wrote")
    parser.add_argument("--photos", required=True)
    given = parser.parse_args()
    runs = sorted(path.parent for path in given.folds.glob(f"*/{checkpoint.FACTS}"))
    if not runs:
        raise SystemExit(f"{given.folds} has no runs: see --help for the command that makes them")
    logits, labels, temperatures = [], [], []
    for folder in runs:
        classifier = run.load(folder)
        part = runs_split(str(folder), given.photos, "test")[0].as_classes(classifier.classes)
        scores = evaluate.score(classifier.infer, part, classifier.preprocess)
        logits.append(scores.logits)
        labels.append(scores.labels)
        found = checkpoint.read_facts(folder)["calibration"]
        temperatures.append(found["temperature"] if found else 1.0)
        print(folder.name, len(part), f"{scores.top1:.3f}", f"{temperatures[-1]:.2f}", flush=True)
    truth = np.concatenate(labels)
    scaled = [softmax(own, temperature) for own, temperature in zip(logits, temperatures, strict=True)]
    facts = checkpoint.read_facts(runs[0])
    result = {
        "date": datetime.date.today().isoformat(), "command": __doc__.split("\n\n")[1], "versions": versions(),
        "net": facts["net"], "mode": facts["recipe"]["mode"], "num_photos": len(truth), "temperatures": temperatures,
        "top1": float((np.concatenate(scaled).argmax(1) == truth).mean()),
        "before": calibration.summary(softmax(np.concatenate(logits)), truth),
        "after": calibration.summary(np.concatenate(scaled), truth),
    }  # fmt: skip
    files.write_json(RESULTS, result)
    for side in ("before", "after"):
        print(side, {key: value for key, value in result[side].items() if key != "bins"})


if __name__ == "__main__":
    main()
