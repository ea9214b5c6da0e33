"""Training on a graphics card, beside timm's and torchvision's loops on the same card and photos:

    PYTHONPATH=src python benchmarks/train_gpu.py PHOTOS [--net mobilenet_v2 ...] [--epochs 4] [--rounds 2] [--compile]

photos/s of the whole loop at 224 px, 128 a batch, from random weights, validation after each epoch included: the time
until the first epoch is warm (capturing, compiling) counts. Each peer has bfloat16, channels-last and its best of 8 and
16 workers; --compile gives it torch.compile, too. The floor is the time that moving each layer's maps through the
card's memory takes, five times of two bytes a value (written, read; read, its gradient written and read), at the
rate of a large copy. With HANDLENS_PEERS=here in the environment the peers are those of this Python. Writes
benchmarks/results/train_gpu.json.
"""

from __future__ import annotations

import argparse
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
BATCH = 128
MOVES, VALUE_BYTES = 5, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--net", action="append", choices=list(NETS))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="give the peers torch.compile")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device here, which this measures; benchmarks/train.py is for the CPU", file=sys.stderr)
        raise SystemExit(2)
    result: dict[str, Any] = {"command": "python benchmarks/train_gpu.py PHOTOS", **machine(), "nets": {}}
    result |= {"card": torch.cuda.get_device_name(), "bytes_per_s": copy_rate(), "batch_size": BATCH}
    there = have_peers()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        classes = lay_out(given.folder, work / "photos", 2600, 290)
        for net in given.net or NETS:
            result["nets"][net] = one_net(net, work / "photos", classes, given, there)
            result["nets"][net]["floor_photos_per_s"] = result["bytes_per_s"] / bytes_per_photo(net)
            files.write_json(RESULT, result)
    for net, found in result["nets"].items():
        for kind, seen in found["photos_per_s"].items():
            ratio = found["photos_per_s"]["handlens"]["median"] / seen["median"]
            share = seen["median"] / found["floor_photos_per_s"]
            print(
                f"{net:20} {kind:12} {seen['median']:8.0f} photos/s, handlens {ratio:.1f} x, {share:.0%} of the floor"
            )


def one_net(net: str, folder: Path, classes: int, given: argparse.Namespace, there: bool) -> dict[str, Any]:
    timm_name, arguments, torchvision_name = NETS[net]
    settings = {
        "px": PX, "train_px": PX, "resize_px": 256, "mean": [0.5] * 3, "std": [0.5] * 3, "timm": timm_name,
        "arguments": arguments, "torchvision": torchvision_name, "num_classes": classes, "net": net, "weights": "none",
        "epochs": given.epochs, "folder": str(folder), "batch_size": BATCH, "device": "cuda",
    }  # fmt: skip
    kinds: dict[str, Any] = {"handlens": lambda: own("ours_train.py", settings)}
    chosen = {}
    for kind, script in (("timm", "timm_train.py"), ("torchvision", "torchvision_train.py")):
        if not there or not settings[kind]:  # torchvision has no MobileNetV1
            continue
        theirs = {**settings, "compile": given.compile}
        workers, threads = best_settings(
            lambda workers, threads, script=script, theirs=theirs: peer(
                script, {**theirs, "epochs": 1, "compile": False, "workers": workers, "threads": threads}, threads
            ),
            (8, 16),
        )
        chosen[kind] = {"workers": workers, "threads": threads, "compile": given.compile}
        kinds[kind] = lambda script=script, more={**theirs, **chosen[kind]}: peer(script, more, more["threads"])
    rates, last = in_turn(kinds, given.rounds)
    return {
        "photos_per_s": rates, "settings": chosen, "epochs": given.epochs,
        "validation_top1": {kind: said["top1"] for kind, said in last.items()},
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
        if not list(module.children()):
            module.register_forward_hook(count)
    model(torch.empty(1, 3, PX, PX, device="meta"))
    return float(values * MOVES * VALUE_BYTES)


if __name__ == "__main__":
    main()
