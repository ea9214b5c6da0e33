"""What benchmarks/unknown.py measures, of networks trained whole (mode "full") in place of heads on frozen ones:

    python benchmarks/unknown_full.py --photos FLOWERS --v2-weights FILE [--mode last] [--left-out roses ...]

Each flower class is left out in turn; MobileNetV2 is trained on the other four by the recipe's own choices, with their
own split; their test photos and all photos of the fifth are scored. A class that is in
benchmarks/results/unknown_full.json already is not trained again in that mode.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import handlens
from handlens import checkpoint, files
from handlens import photos as photos_room
from handlens.evaluate import calibration, unknown
from handlens.photos import Photos
from handlens.train import familiar
from handlens.train.features import Frozen
from handlens.train.judge import versions
from unknown import ROOT, centres, energy_of, means, pictures_of_nothing

RESULTS = ROOT / "benchmarks" / "results" / "unknown_full.json"
NET = "mobilenet_v2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="flower_photos")
    parser.add_argument("--v2-weights", required=True, help="MobileNetV2's weights")
    parser.add_argument("--mode", default="full", choices=["full", "last"])
    parser.add_argument("--left-out", action="append", help="one class; may repeat. All.")
    given = parser.parse_args()
    command = "python benchmarks/unknown_full.py --photos FLOWERS --v2-weights FILE"
    results: dict[str, Any] = files.read_json(RESULTS) if RESULTS.is_file() else {"runs": []}
    done = {run["left_out"] for run in results["runs"] if run["mode"] == given.mode}
    found = photos_room.scan(given.photos)
    with tempfile.TemporaryDirectory() as folder:
        others = pictures_of_nothing(Path(folder))
        for left_out in given.left_out or found.classes:
            if left_out in done:
                continue
            row = one_left_out(found, left_out, given.v2_weights, given.mode, Path(folder) / left_out, others)
            results["runs"].append(row)
            results |= {"date": datetime.date.today().isoformat(), "command": command, "versions": versions()}
            modes = dict.fromkeys(run["mode"] for run in results["runs"])
            rows = {mode: [run for run in results["runs"] if run["mode"] == mode] for mode in modes}
            results |= {"net": NET, "mean": {mode: means(runs) for mode, runs in rows.items()}}
            files.write_json(RESULTS, results)
            print(left_out, {k: round(v["left out"]["auroc"], 3) for k, v in row["scores"].items()}, flush=True)
    for score, kinds in results["mean"].get(given.mode, {}).items():
        print(
            score, {kind: [round(each[f], 3) for f in ("auroc", "false_accept_at_95")] for kind, each in kinds.items()}
        )


def one_left_out(
    found: Photos, left_out: str, weights: str, mode: str, folder: Path, others: dict[str, Photos]
) -> dict[str, Any]:
    """Train without a class, and tell its photos and pictures of nothing from test photos of the others."""
    for index, path in enumerate(found.paths):
        name = found.classes[found.labels[index]]
        if name != left_out:
            link = folder / "photos" / name / Path(path).name
            link.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(os.path.abspath(found.path(index)), link)
    run = handlens.fit(folder / "photos", out=folder / "run", net=NET, mode=mode, weights=weights)
    trained = checkpoint.load(run.folder)
    own = photos_room.scan(folder / "photos")
    sha256 = photos_room.examine(own).sha256 | photos_room.examine(found).sha256
    splits = photos_room.read_split(run.folder / "split.json", own, sha256)
    unseen = found.select(np.flatnonzero(found.labels == found.classes.index(left_out)))

    def embed(photos: Photos, sha256: dict[str, str]) -> np.ndarray:
        return Frozen(trained.net, trained.preprocess).features(photos, sha256)[0]

    groups = {name: embed(part, sha256) for name, part in splits.items()} | {"left out": embed(unseen, sha256)}
    groups |= {kind: embed(part, photos_room.examine(part).sha256) for kind, part in others.items()}
    train, labels = groups.pop("train"), {name: part.labels for name, part in splits.items()}
    depth = len(trained.net.classifier) - 1
    with torch.inference_mode():
        logits = {name: trained.net.classifier[depth](torch.from_numpy(rows)).numpy() for name, rows in groups.items()}
    temperature = calibration.fit(logits["validation"], labels["validation"]).temperature
    scores = {
        kind: {
            name: unknown.Rejection(kind=kind, threshold=0.0).scores(calibration.softmax(values, temperature), values)
            for name, values in logits.items()
        }
        for kind in unknown.KINDS
    }
    scores["cosine of features with the nearest centre"] = centres(train, labels["train"], groups)
    known_as = familiar.fit(depth, train, labels["train"], groups["validation"], logits["validation"])
    assert known_as is not None
    scores["energy, lowered by that cosine"] = {
        name: energy_of(known_as.lowered(torch.from_numpy(rows), torch.from_numpy(logits[name]), known_as.centres))
        for name, rows in groups.items()
    }
    return {
        "mode": mode,
        "left_out": left_out,
        "top1_of_the_others": float((logits["test"].argmax(1) == labels["test"]).mean()),
        "epochs": run.recipe.epochs,
        "scores": {
            kind: {
                name: unknown.separation(each["test"], each[name], unknown.threshold_of(each["validation"]))
                for name in each
                if name not in ("validation", "test")
            }
            for kind, each in scores.items()
        },
    }


if __name__ == "__main__":
    main()
