"""How much of a photo's shorter side a trained network should be shown, asked of the validation photos of runs.

    python benchmarks/crop_share.py PHOTOS RUN... [--but-test-of RUN] [--split test]

Each run judges its own validation photos (found in PHOTOS by content) with 7/8, 15/16 and all of the shorter side cut
to its input size: top-1, and the loss after a temperature is fitted. Runs of one network and mode, such as folds, are
joined. Photos that are for the test of the run after --but-test-of choose nothing. `benchmarks/results/crop_share.json`
keeps one row for each network and mode. `--split test` asks the test photos, once the share is chosen.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from handlens import checkpoint, evaluate, files, run
from handlens import photos as photos_room
from handlens.evaluate import calibration
from side_by_side import machine

SHARES = (0.875, 0.9375, 1.0)
RESULTS = Path(__file__).parent / "results" / "crop_share.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--but-test-of", default="")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    given = parser.parse_args()
    found = photos_room.scan(given.photos)
    sha256 = photos_room.examine(found).sha256
    kept_out = set(split_of(given.but_test_of, "test")) if given.but_test_of else set()
    answers: dict[str, dict[float, list[tuple[np.ndarray, np.ndarray]]]] = {}
    for folder in given.runs:
        classifier, recipe = run.load(folder), checkpoint.read_facts(folder)["recipe"]
        own = set(split_of(folder, given.split)) - kept_out
        chosen = found.select([i for i, path in enumerate(found.paths) if sha256[path] in own])
        chosen = chosen.as_classes(classifier.classes)
        by_share = answers.setdefault(
            f"{recipe['net']}, {recipe['mode']}, {given.split}", {share: [] for share in SHARES}
        )
        for share in SHARES:
            px = classifier.preprocess.image_px
            contract = dataclasses.replace(classifier.preprocess, resize="crop", resize_px=round(px / share))
            scores = evaluate.score(classifier.infer, chosen, contract)
            assert scores.logits is not None
            by_share[share].append((scores.logits, scores.labels))
        print(f"{folder}: {len(chosen)} {given.split} photos", file=sys.stderr, flush=True)
    rows = files.read_json(RESULTS)["rows"] if RESULTS.is_file() else {}
    table = Table("network, mode, photos", "number", "share shown", "top-1", "loss", "gained", "lost")
    for name, by_share in answers.items():
        rows[name] = {"machine": machine(), "num_runs": len(by_share[1.0]), "shares": judged(by_share)}
        for share, row in rows[name]["shares"].items():
            table.add_row(
                name, str(row["num_photos"]), share, f"{row['top1']:.1%}", f"{row['loss']:.3f}",
                str(row["gained"]), str(row["lost"]),
            )  # fmt: skip
    files.write_json(RESULTS, {"command": "python benchmarks/crop_share.py PHOTOS RUN...", "rows": rows})
    Console().print(table)


def split_of(folder: str, name: str) -> list[str]:
    """The contents of the photos in a run's split."""
    return list(files.read_json(Path(folder, "split.json"))[name].values())


def judged(by_share: dict[float, list[tuple[np.ndarray, np.ndarray]]]) -> dict[str, dict[str, float]]:
    """For each share: top-1, calibrated loss, and the photos right with it alone or with the smallest share alone."""
    found, first = {}, None
    for share, pairs in by_share.items():
        logits, labels = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        temperature = calibration.fit(logits, labels).temperature
        probabilities = calibration.softmax(logits, temperature)[np.arange(len(labels)), labels]
        right = logits.argmax(1) == labels
        first = right if first is None else first
        found[str(share)] = {
            "num_photos": len(labels),
            "top1": float(right.mean()),
            "loss": float(-np.log(np.maximum(probabilities, 1e-12)).mean()),
            "gained": int((right & ~first).sum()),
            "lost": int((first & ~right).sum()),
        }
    return found


if __name__ == "__main__":
    main()
