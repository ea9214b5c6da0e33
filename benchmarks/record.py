"""Record a finished run's figures:

    python benchmarks/record.py RUN NAME --command "handlens train ..." --commit HASH

Writes benchmarks/results/NAME.json, and with --keep the run itself as float16 in benchmarks/runs/NAME, its paths
made relative to this project, so that later work can begin from it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from handlens import checkpoint, cost, files
from handlens.train import Recipe
from handlens.train.judge import versions

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--command", required=True, help="the command that made the run, from the project's root")
    parser.add_argument("--commit", required=True, help="the commit whose code made the run")
    parser.add_argument("--to-beat", type=float, help="the figure that was to be beaten, a fraction")
    parser.add_argument("--keep", action="store_true", help="keep the run as float16 too")
    given = parser.parse_args()
    found = checkpoint.load(given.run)
    recipe = {key: relative(value) for key, value in found.recipe.items()}
    keep = ("top1", "top1_ci95", "num_photos", "loss")
    figures = {split: {key: found.metrics[split][key] for key in keep} for split in ("validation", "test")}
    counted = cost.count(found.net, found.preprocess.image_px)
    made = datetime.datetime.fromtimestamp((given.run / files.WEIGHTS).stat().st_mtime, datetime.UTC)
    result: dict[str, Any] = {
        "command": given.command,
        "net": found.name,
        "mode": recipe["mode"],
        "weights": begun_from(recipe),
        "image_px": recipe["image_px"],
        "epochs": found.metrics["epochs"],
        "num_params": counted.num_params,
        "macs": counted.macs,
        **figures,
        "seconds": found.metrics["seconds"],
        "device": found.metrics["device"],
        "date": made.date().isoformat(),
        "commit": given.commit,
        "versions": versions(),
        "recipe": recipe,
    }
    if given.to_beat:
        result["to_beat"] = given.to_beat
    files.write_json(ROOT / "benchmarks" / "results" / f"{given.name}.json", result)
    if given.keep:
        folder = ROOT / "benchmarks" / "runs" / given.name
        found.recipe = recipe
        checkpoint.save(folder, found, dtype=torch.float16)
        Recipe(**recipe).write(folder / "recipe.toml")
        for name in ("split.json", "log.csv"):
            shutil.copy(given.run / name, folder / name)


def begun_from(recipe: dict[str, Any]) -> str:
    """What the run's first weights were, for the table of results; its teacher, too."""
    begun = Path(recipe["continue_run"] or recipe["weights"]).name
    pruned = f", {recipe['prune']:.0%} of its channels pruned" if recipe["prune"] else ""
    taught = f", taught by {Path(recipe['teacher']).name}" if recipe["teacher"] else ""
    return begun + pruned + taught


def relative(value: Any) -> Any:
    """An absolute path as seen from the project's root; anything else as it is."""
    return os.path.relpath(value, ROOT) if isinstance(value, str) and os.path.isabs(value) else value


if __name__ == "__main__":
    main()
