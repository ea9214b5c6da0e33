"""What each option of a recipe is worth: trainings with one option changed, beside trainings with none:

    python benchmarks/ablation.py PHOTOS [--net mobilenet_v3_small] [--mode scratch] [--image-px 160] [--epochs N]
        [--weights FILE] [--folds 2] [--jobs 1] [--only NAME ...]

Each is judged on validation photos, in each fold another tenth of them all; the test photos of seed 0 are in no fold's
training or validation. What the recipe chooses by itself stays as it is. So many --jobs are trained at once, which only
a graphics card gains by. Each training is kept in benchmarks/results/ablation.json when it is done, and not done again
by the same call.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from handlens import files
from handlens import photos as photos_room
from handlens.photos import Photos
from side_by_side import ROOT, machine

RESULTS = ROOT / "benchmarks" / "results" / "ablation.json"
BASE = "the recipe"
CHANGES: dict[str, dict[str, Any]] = {
    BASE: {},
    "crops and flips alone": {"augment": "light"},
    "no augmentation": {"augment": "none"},
    "no mixup": {"mixup_alpha": 0.0},
    "CutMix 1.0 beside mixup": {"cutmix_alpha": 1.0},
    "no label smoothing": {"label_smoothing": 0.0},
    "no running average": {"ema_decay": 0.0},
    "no dropout": {"dropout": 0.0},
    "stochastic depth 0.1": {"stochastic_depth": 0.1},
    "no weight decay": {"weight_decay": 0.0},
    "crops of 8 % and more": {"crop_min_area": 0.08},
    "crops of 50 % and more": {"crop_min_area": 0.5},
    "half the rate": {"lr": 0.00075},
    "twice the rate": {"lr": 0.003},
    "SGD at 0.05": {"optimizer": "sgd", "lr": 0.05},
    "batches of 128 at four times the rate": {"batch_size": 128, "lr": 0.006},
    "one size of crops to the end": {"last_px": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--net", default="mobilenet_v3_small")
    parser.add_argument("--mode", default="scratch", choices=("scratch", "full"))
    parser.add_argument("--weights", default="none")
    parser.add_argument("--image-px", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(CHANGES), default=list(CHANGES))
    given = parser.parse_args()
    options = ["--net", given.net, "--mode", given.mode, "--weights", given.weights, "--image-px", str(given.image_px)]
    options += ["--epochs", str(given.epochs)] if given.epochs else []
    of = " ".join(Path(word).name for word in options)
    result = files.read_json(RESULTS) if RESULTS.is_file() else {}
    rows: dict[str, Any] = result.setdefault(of, {"command": f"python benchmarks/ablation.py PHOTOS {of}", "rows": {}})
    rows |= {"machine": machine()}
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as name:
        folds = laid_out(given.photos, given.folds, Path(name))

        def train(change: str, fold: int) -> None:
            row = trained(folds[fold], CHANGES[change], options, Path(name, f"{change}, {fold}"), given.jobs)
            with lock:
                rows["rows"].setdefault(change, {})[str(fold)] = row
                files.write_json(RESULTS, result)
                print(f"{change}, fold {fold}: {row['validation_top1']:.1%}", file=sys.stderr, flush=True)

        names = [name for name in CHANGES if name in given.only]
        todo = [
            (name, fold) for fold in range(given.folds) for name in names
            if str(fold) not in rows["rows"].get(name, {})
        ]  # fmt: skip
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(train, *zip(*todo, strict=True)) if todo else ())
    table = Table("changed", "top-1", "loss", "loss beside the recipe's", title=of)
    for change, by_fold in rows["rows"].items():
        table.add_row(change, *summary(by_fold, rows["rows"].get(BASE, {})))
    Console().print(table)


def laid_out(source: str, count: int, folder: Path) -> list[Path]:
    """A CSV of path,label,split a fold; the first is the split of seed 0, the others cut its training photos anew."""
    found = photos_room.scan(source)
    findings = photos_room.examine(found)
    near = findings.near_duplicates()
    splits, _ = photos_room.keep_together(photos_room.split(found, findings.sha256, 0), near)
    test = set(splits["test"].paths)
    pool = found.select([i for i, path in enumerate(found.paths) if path not in test])
    cuts = [splits]
    for seed in range(1, count):
        cut = photos_room.split(pool, findings.sha256, seed, (8 / 9, 1 / 9, 0.0))
        cut, _ = photos_room.keep_together(cut, [[path for path in group if path not in test] for group in near])
        cuts.append({**cut, "test": splits["test"]})
    return [written(cut, folder / f"fold-{fold}.csv") for fold, cut in enumerate(cuts)]


def written(splits: dict[str, Photos], path: Path) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "split"))
        for name, photos in splits.items():
            for index, label in enumerate(photos.labels):
                rows.writerow((os.path.abspath(photos.path(index)), photos.classes[label], name))
    return path


def trained(fold: Path, changes: dict[str, Any], options: list[str], out: Path, jobs: int) -> dict[str, Any]:
    """The last epoch of a training with these fields of its recipe changed."""
    recipe = out.with_suffix(".toml")
    recipe.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in changes.items()), "utf-8")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "handlens", "train", str(fold), *options, "--recipe", str(recipe)]
    done = subprocess.run([*command, "--out", str(out), "--json"], capture_output=True, env=environment, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    said = json.loads(done.stdout)
    with open(out / "log.csv", encoding="utf-8") as file:
        last = {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}
    kept = ("train_loss", "validation_loss", "validation_top1")
    found = {"changes": changes, **{name: last[name] for name in kept}}
    found |= {"num_validation": said["metrics"]["photos"]["validation"], "precision": said["recipe"]["precision"]}
    return found | {name: said["metrics"][name] for name in ("epochs", "seconds", "device")}


def summary(by_fold: dict[str, Any], base: dict[str, Any]) -> tuple[str, str, str]:
    """Means over the folds, and the mean difference from the recipe's own runs of the same folds."""
    top1, loss = (np.mean([row[name] for row in by_fold.values()]) for name in ("validation_top1", "validation_loss"))
    shared = [by_fold[fold]["validation_loss"] - base[fold]["validation_loss"] for fold in by_fold if fold in base]
    beside = f"{np.mean(shared):+.3f}" if shared and by_fold is not base else ""
    return f"{top1:.1%}", f"{loss:.3f}", beside


if __name__ == "__main__":
    main()
