"""Mode "head" from process start to report, first and second time, beside timm with a frozen network:

    python benchmarks/head.py PHOTOS --v2-weights FILE [--max-epochs 4]

MobileNetV2 at 224 px. The second run has another recipe on the same photos, and finds the features in the cache.
timm's loop stops when its validation top-1 is ours, or after `--max-epochs`. Writes benchmarks/results/head.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from handlens import files, photos
from handlens.nets import keys, weights
from side_by_side import ROOT, have_peers, machine, peer

RESULT = ROOT / "benchmarks" / "results" / "head.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--v2-weights", type=Path, required=True)
    parser.add_argument("--max-epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    result: dict[str, Any] = {"command": "python benchmarks/head.py PHOTOS --v2-weights FILE", **machine()}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        result["cold"], result["warm"] = [], []
        for number in range(given.rounds):
            shutil.rmtree(work / "cache", ignore_errors=True)
            result["cold"].append(ours(given, work, f"cold-{number}", []))
            result["warm"].append(ours(given, work, f"warm-{number}", ["--lr", "0.02", "--seed", "0"]))
        run = work / "cold-0"
        top1 = json.loads((run / "handlens.json").read_text("utf-8"))["metrics"]["validation"]["top1"]
        result["validation_top1"] = top1
        if given.max_epochs and have_peers():
            result["timm"] = timm(given, work, run, top1)
    files.write_json(RESULT, result)
    print(json.dumps({key: result.get(key) for key in ("cold", "warm", "validation_top1", "timm")}, indent=1))


def ours(given: argparse.Namespace, work: Path, name: str, more: list[str]) -> float:
    """Seconds of the whole command."""
    command = [
        sys.executable, "-m", "handlens", "train", given.folder, "--net", "mobilenet_v2", "--mode", "head",
        "--weights", str(given.v2_weights), "--out", str(work / name), *more,
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "HANDLENS_CACHE": str(work / "cache")}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return time.perf_counter() - start


def timm(given: argparse.Namespace, work: Path, run: Path, top1: float) -> dict[str, Any]:
    """timm's loop on the same split."""
    found = photos.scan(given.folder)
    split = photos.read_split(run / "split.json", found, photos.examine(found).sha256)
    for ours_, theirs in (("train", "train"), ("validation", "val")):
        part = split[ours_]
        for index, label in enumerate(part.labels):
            path = work / "split" / theirs / part.classes[label] / Path(part.paths[index]).name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(os.path.abspath(part.path(index)), path)
    file = weights.find("mobilenet_v2", str(given.v2_weights))
    state = weights.load(file).state_dict()
    settings: dict[str, Any] = {
        "px": 224, "mean": file.preprocess.mean, "std": file.preprocess.std, "timm": "mobilenetv2_100",
        "arguments": {"pad_type": "same"}, "num_classes": len(found.classes), "folder": str(work / "split"),
        "weights": str(work / "timm.safetensors"), "top1": top1, "max_epochs": given.max_epochs, "workers": 2,
        "threads": 2,
    }  # fmt: skip
    shapes = peer("timm_keys.py", settings, 2)["shapes"]
    renamed = {key: keys.rename("timm", "mobilenet_v2", key) for key in shapes if not key.startswith("classifier")}
    save_file({key: state[own].reshape(shapes[key]).contiguous() for key, own in renamed.items()}, settings["weights"])
    return peer("timm_head.py", settings, 2)


if __name__ == "__main__":
    main()
