"""Which mode of `handlens train` for few photos:

    python benchmarks/few_photos.py PHOTOS [--per-class 5] [--seeds 3] [--modes head,last,full]

EfficientNet-Lite0 with ImageNet weights, the recipe's own choices for each mode. Each seed draws its training photos
from the training split, and an eighth as many for validation, as `handlens learning-curve` does; all are judged on the
validation split's photos, since a default is chosen by it. Adds to benchmarks/results/few_photos.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import handlens
from handlens import files
from handlens.experiments.learning_curve import draw
from handlens.photos import Photos
from handlens.train import start
from handlens.train.job import versions
from handlens.train.recipe import choose
from side_by_side import ROOT

RESULT = ROOT / "benchmarks" / "results" / "few_photos.json"
NET = "efficientnet_lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--per-class", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--modes", default="head,last,full")
    given = parser.parse_args()
    found = (
        files.read_json(RESULT)
        if RESULT.is_file()
        else {"network": NET, "weights": "imagenet", "versions": versions(), "runs": []}
    )
    splits = start.data_of(choose([100, 100], {"net": NET, "photos": given.photos}), None).splits
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "photos")
            train, validation = splits["train"], splits["validation"]
            few = draw(validation.labels, max(1, round(given.per_class / 8)), seed)
            rest = np.setdiff1d(np.arange(len(validation)), few)
            lay(folder / "train", train.select(draw(train.labels, given.per_class, seed)))
            lay(folder / "val", validation.select(few))
            lay(folder / "test", validation.select(rest))
            for mode in given.modes.split(","):
                since = time.monotonic()
                run = handlens.fit(folder, out=Path(name, mode), net=NET, mode=mode, seed=seed, precision="32-true")
                row: dict[str, Any] = {
                    "photos_per_class": given.per_class, "mode": mode, "seed": seed, "epochs": run.recipe.epochs,
                    "judged_on": len(rest), "top1": run.metrics["test"]["top1"],
                    "seconds": round(time.monotonic() - since, 1),
                }  # fmt: skip
                found["runs"].append(row)
                files.write_json(RESULT, found)
                print(row, flush=True)


def lay(folder: Path, photos: Photos) -> None:
    """Link photos below a folder, a subfolder a class."""
    for index, label in enumerate(photos.labels):
        path = folder / photos.classes[label] / Path(photos.paths[index]).name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.abspath(photos.path(index)), path)


if __name__ == "__main__":
    main()
