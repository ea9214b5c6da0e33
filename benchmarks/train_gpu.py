"""Training on a graphics card, beside timm's and torchvision's loops on the same card and photos:

    PYTHONPATH=src python benchmarks/train_gpu.py PHOTOS [--net mobilenet_v2 ...] [--epochs 8] [--rounds 3] [--compile]

photos/s of the whole loop at 224 px, 128 a batch, from random weights, with validation after each epoch. The first
epoch, in which photos are decoded, passes captured or compiled and algorithms tried, does not count. Each peer has
bfloat16, channels-last, a fused optimiser and a worker for each core or for every other, whichever is faster with the
first network; --compile gives it torch.compile, too.

The floor is the time that moving each layer's maps through the card's memory takes, five times of two bytes a value
(written, read; read, its gradient written and read), at the rate of a large copy. It takes each layer by itself: what
joins layers in one kernel could go below.

With HANDLENS_PEERS=here in the environment the peers are those of this Python. Adds to
benchmarks/results/train_gpu.json what is of the same card, so that networks can be measured one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handlens import files, nets
from side_by_side import ROOT, best_settings, have_peers, in_turn, machine, own, peer
from train import NETS as PEERS
from train import PX, lay_out

RESULT = ROOT / "benchmarks" / "results" / "train_gpu.json"
NETS = {"mobilenet_v1": ("mobilenetv1_100", {}, None), **{net: names[:3] for net, names in PEERS.items()}}
SCRIPTS = {"timm": "timm_train.py", "torchvision": "torchvision_train.py"}
BATCH = 128
MOVES, VALUE_BYTES = 5, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--net", action="append", choices=list(NETS))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="give the peers torch.compile")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device here, which this measures; benchmarks/train.py is for the CPU", file=sys.stderr)
        raise SystemExit(2)
    chosen_nets = given.net or list(NETS)
    result: dict[str, Any] = {"command": "python benchmarks/train_gpu.py PHOTOS", **machine(), "nets": {}}
    result |= {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "batch_size": BATCH}
    result["copied_bytes_per_s"] = copy_rate()
    if RESULT.exists() and (before := json.loads(RESULT.read_text("utf-8")))["card"] == result["card"]:
        result["nets"] = before["nets"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        classes = lay_out(given.folder, folder, 2600, 290)
        workers = workers_of(settings_of(chosen_nets[0], folder, classes, given)) if have_peers() else {}
        for net in chosen_nets:
            print(net, file=sys.stderr)
            settings = settings_of(net, folder, classes, given)
            floor = result["copied_bytes_per_s"] / bytes_per_photo(net)
            result["nets"][net] = one_net(settings, workers, given.rounds, floor)
            files.write_json(RESULT, result)
    for net in chosen_nets:
        for kind, seen in result["nets"][net]["photos_per_s"].items():
            print(
                f"{net:20} {kind:12} {seen['median']:8.0f} photos/s ({seen['least']:.0f} to {seen['greatest']:.0f}), "
                f"handlens {seen['handlens_times']:.2f} x, {seen['floor_share']:.0%} of the floor"
            )


def settings_of(net: str, folder: Path, classes: int, given: argparse.Namespace) -> dict[str, Any]:
    """What all scripts are told."""
    timm_name, arguments, torchvision_name = NETS[net]
    return {
        "px": PX, "train_px": PX, "resize_px": 256, "mean": [0.5] * 3, "std": [0.5] * 3, "timm": timm_name,
        "arguments": arguments, "torchvision": torchvision_name, "num_classes": classes, "net": net, "weights": "none",
        "epochs": given.epochs, "skip_epochs": 1, "folder": str(folder), "batch_size": BATCH, "device": "cuda",
        "compile": given.compile,
    }  # fmt: skip


def workers_of(settings: dict[str, Any]) -> dict[str, int]:
    """The number of workers with which each peer is fastest."""
    cores = os.cpu_count() or 1
    found = {}
    for kind, script in SCRIPTS.items():
        if not settings[kind]:  # torchvision has no MobileNetV1: any network has the same photos
            settings = {**settings, "torchvision": "mobilenet_v2"}
        tried = {**settings, "epochs": 2, "compile": False}
        found[kind], _ = best_settings(
            lambda workers, threads, script=script, tried=tried: peer(
                script, {**tried, "workers": workers, "threads": threads}, threads
            ),
            (max(1, cores // 2), cores),
            most_threads=1,
        )
    return found


def one_net(settings: dict[str, Any], workers: dict[str, int], rounds: int, floor: float) -> dict[str, Any]:
    """Rates of a network side by side. workers: of each peer.  floor: photos/s that memory allows."""
    kinds: dict[str, Any] = {"handlens": lambda: own("ours_train.py", settings)}
    for kind, count in workers.items():
        if settings[kind]:
            theirs = {**settings, "workers": count, "threads": 1}
            kinds[kind] = lambda script=SCRIPTS[kind], theirs=theirs: peer(script, theirs, 1)
    rates, last = in_turn(kinds, rounds)
    for seen in rates.values():
        seen |= {"handlens_times": rates["handlens"]["median"] / seen["median"], "floor_share": seen["median"] / floor}
    return {
        "photos_per_s": rates, "floor_photos_per_s": floor, "workers": workers, "epochs": settings["epochs"],
        "compile": settings["compile"], "validation_top1": {kind: said["top1"] for kind, said in last.items()},
        "versions": {kind: said[kind] for kind, said in last.items() if kind in said},
        "precision": last["handlens"]["precision"],
    }  # fmt: skip


def copy_rate() -> float:
    """Bytes that the card reads and writes a second, in a copy of 1 GiB."""
    one = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(one)
    other.copy_(one)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        other.copy_(one)
    torch.cuda.synchronize()
    return 20 * 2 * one.numel() / (time.perf_counter() - start)


def bytes_per_photo(net: str) -> float:
    """What a training step moves through the card's memory for a photo, by the maps of its layers alone."""
    values = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal values
        values += output.numel()

    model = nets.create(net).to("meta").eval()
    for module in model.modules():
        if not list(module.children()) and not isinstance(module, (nn.Identity, nn.Dropout)):
            module.register_forward_hook(count)
    model(torch.empty(1, 3, PX, PX, device="meta"))
    return float(values * MOVES * VALUE_BYTES)


if __name__ == "__main__":
    main()
