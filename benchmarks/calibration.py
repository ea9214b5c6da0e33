"""How far the probabilities of trained runs are off, before and after calibration:

    python benchmarks/calibration.py --photos FLOWERS RUN...

The temperature is fitted on each run's validation photos; every figure is of its test photos. Also: sets of classes
that promise 95 %, and how many validation photos a temperature needs, from draws of fewer. Writes
benchmarks/results/calibration.json.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import numpy as np

from handlens import checkpoint, evaluate, files, run
from handlens.cli.labelled import runs_split
from handlens.evaluate import Scores, calibration, conformal
from handlens.evaluate.calibration import softmax
from handlens.train.judge import versions

RESULTS = Path(__file__).resolve().parent / "results" / "calibration.json"
FEWER = (10, 20, 30, 50, 100, 200)
DRAWS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--photos", required=True, help="the runs' photos")
    given = parser.parse_args()
    command = "python benchmarks/calibration.py --photos PHOTOS benchmarks/runs/*"
    date = datetime.date.today().isoformat()
    results: dict[str, Any] = {"command": command, "date": date, "versions": versions(), "runs": {}}
    for folder in given.runs:
        results["runs"][folder.name] = found = one_run(folder, given.photos)
        files.write_json(RESULTS, results)
        print(folder.name, {key: value for key, value in found.items() if key not in ("before", "after")})
        for side in ("before", "after"):
            print("  ", side, {key: value for key, value in found[side].items() if key != "bins"}, flush=True)


def one_run(folder: Path, photos: str) -> dict[str, Any]:
    """Calibration, sets and the need of photos of one run."""
    classifier = run.load(folder)
    facts = checkpoint.read_facts(folder)
    sides: dict[str, Scores] = {}
    for name in ("validation", "test"):
        part = runs_split(str(folder), photos, name).photos.as_classes(classifier.classes)
        sides[name] = evaluate.score(classifier.infer, part, classifier.preprocess)
    logits = {name: scores.logits for name, scores in sides.items()}
    labels = {name: scores.labels for name, scores in sides.items()}
    found = calibration.fit(logits["validation"], labels["validation"])
    calibrated = {
        name: Scores(
            probabilities=softmax(logits[name], found.temperature),
            labels=labels[name],
            classes=scores.classes,
            paths=scores.paths,
        )
        for name, scores in sides.items()
    }
    return {
        "net": facts["net"],
        "calibration": found.to_dict(),
        "num_test": sides["test"].num_photos,
        "top1": sides["test"].top1,
        "before": calibration.summary(softmax(logits["test"]), labels["test"]),
        "after": calibration.summary(calibrated["test"].probabilities, labels["test"]),
        "coverage": conformal.judge(calibrated["validation"], calibrated["test"], 0.95),
        "fewer": fewer(logits, labels),
    }


def fewer(logits: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> dict[str, Any]:
    """How often a temperature by fewer validation photos gives a lower loss on the test photos than none."""
    rng = np.random.default_rng(0)
    plain = loss(logits["test"], labels["test"], 1.0)
    found = {}
    least, calibration.FEWEST = calibration.FEWEST, 0
    for count in FEWER:
        losses, temperatures = [], []
        for _ in range(DRAWS):
            own = rng.choice(len(labels["validation"]), count, replace=False)
            temperatures.append(calibration.fit(logits["validation"][own], labels["validation"][own]).temperature)
            losses.append(loss(logits["test"], labels["test"], temperatures[-1]))
        low, high = np.quantile(temperatures, [0.05, 0.95])
        found[str(count)] = {
            "share_better": float(np.mean(np.array(losses) < plain)),
            "mean_gain_nats": float(plain - np.mean(losses)),
            "temperature_5_to_95": [float(low), float(high)],
        }
    calibration.FEWEST = least
    return found


def loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    own = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, 1e-12)).mean())


if __name__ == "__main__":
    main()
