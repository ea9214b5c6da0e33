"""Smaller crops in the first half of the epochs, and more epochs in the same time: what that does to MobileNetV2.

    python benchmarks/growing.py PHOTOS --v2-weights FILE --first-px 128 --epochs 18 --seed 0

One run of mode full, the recipe's own choices but for these; judged on the validation split, which is what a default is
chosen by. Each is added to benchmarks/results/growing.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from handlens import files
from handlens.train import Recipe, Run, fit
from handlens.train.judge import versions
from side_by_side import ROOT

RESULT = ROOT / "benchmarks" / "results" / "growing.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--v2-weights", required=True, help="MobileNetV2's ImageNet weights")
    parser.add_argument("--first-px", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    more = {"first_px": given.first_px, "epochs": given.epochs, "seed": given.seed}
    with tempfile.TemporaryDirectory() as work:
        since = time.monotonic()
        run = fit(
            given.photos, out=Path(work, "run"), net="mobilenet_v2", mode="full", weights=given.v2_weights, **more
        )
        add(run, time.monotonic() - since)


def add(run: Run, seconds: float) -> None:
    """Write what validation says of a run beside the others."""
    result: dict[str, Any] = files.read_json(RESULT) if RESULT.is_file() else {"runs": []}
    recipe: Recipe = run.recipe
    rows = [line.split(",") for line in (run.folder / "log.csv").read_text("utf-8").splitlines()]
    last = dict(zip(rows[0], map(float, rows[-1]), strict=True))
    found = {"seed": recipe.seed, "first_px": recipe.first_px, "train_px": recipe.train_px, "epochs": recipe.epochs}
    found |= {name: last[name] for name in ("train_loss", "validation_loss", "validation_top1")}
    found |= {"num_validation": run.metrics["photos"]["validation"], "precision": recipe.precision}
    found |= {"seconds": round(seconds), "device": run.metrics["device"]}
    result |= {"command": "python benchmarks/growing.py PHOTOS --v2-weights FILE --first-px PX --epochs N --seed S"}
    result |= {"network": "mobilenet_v2", "versions": versions()}
    result["runs"].append(found)
    files.write_json(RESULT, result)
    print(found)


if __name__ == "__main__":
    main()
