"""Whether INT8 files call the same photos unknown as the network in float:

    python benchmarks/unknown_int8.py RUN

RUN is one of mode "head" (`handlens train FLOWERS --net mobilenet_v2 --mode head --weights FILE`). Its test photos, and
50 each of the textures, noise, drawings and blank frames of benchmarks/unknown.py, are scored by the network and by its
INT8 file for each runtime, calibrated on 100 validation photos by the observer "minmax", with and without what is
familiar to it; the threshold is the float network's. Writes benchmarks/results/unknown_int8.json.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from handlens import bundle, checkpoint, export, files
from handlens import photos as photos_room
from handlens.compress.job import own_splits
from handlens.compress.ladder import TARGETS
from handlens.evaluate.unknown import Rejection, threshold_of
from handlens.photos import Photos
from handlens.run import torch_runtime
from handlens.run.artifact import Infer
from side_by_side import all_versions
from unknown import pictures_of_nothing

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "unknown_int8.json"
ENERGY = Rejection(kind="energy", threshold=0.0)
EACH, CALIBRATION = 50, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    run = parser.parse_args().run
    found = checkpoint.load(run)
    splits, _ = own_splits(run, found, None)

    def pixels(photos: Photos) -> np.ndarray:
        return np.concatenate([images for images, _ in photos_room.batches(photos, found.preprocess, 32)])

    def scores(infer: Infer, images: np.ndarray) -> np.ndarray:
        return np.concatenate([ENERGY.scores(*infer(images[at : at + 8])) for at in range(0, len(images), 8)])

    validation, images = pixels(splits["validation"]), {"test": pixels(splits["test"])}
    with tempfile.TemporaryDirectory() as folder:
        nothing = [part.select(range(EACH)) for part in pictures_of_nothing(Path(folder)).values()]
        images["nothing"] = np.concatenate([pixels(part) for part in nothing])
    facts = bundle.facts(found.name, found.classes, found.preprocess)
    rows = []
    for net in (found.net, without_familiar(found.net)):
        folded = export.folded(net)
        exact = torch_runtime.predictor(net, found.preprocess)
        threshold = threshold_of(scores(exact, validation))
        known = {name: scores(exact, own) >= threshold for name, own in images.items()}
        for to in TARGETS:
            made = importlib.import_module(f"handlens.compress.{to}").quantizer(
                folded, found.preprocess, facts, validation[:CALIBRATION]
            )("minmax", ())
            infer = export.runner(to, 1)(made)
            row: dict[str, Any] = {"to": to, "familiar": net.familiar is not None}
            for name, own in images.items():
                passed = scores(infer, own) >= threshold
                row[name] = {
                    "photos": len(own),
                    "alike": float((passed == known[name]).mean()),
                    "passed": float(passed.mean()),
                    "passed_in_float": float(known[name].mean()),
                }
            rows.append(row)
            print(row, flush=True)
    files.write_json(
        RESULTS,
        {
            "date": datetime.date.today().isoformat(),
            "command": "python benchmarks/unknown_int8.py RUN",
            "net": found.name,
            "mode": found.recipe["mode"],
            "versions": all_versions(),
            "rows": rows,
        },
    )


def without_familiar(net: Any) -> Any:
    """A copy that gives its logits as they are."""
    bare = copy.deepcopy(net)
    bare.familiar = None
    return bare


if __name__ == "__main__":
    main()
