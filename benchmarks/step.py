"""Where the time of a training step goes, on a graphics card where there is one, else on the processor:

    python benchmarks/step.py PHOTOS [--net mobilenet_v2 ...] [--batch-size 128] [--px 224] [--compile] [--device cpu]

Milliseconds of each part alone, the median of some: a batch of photos made (of which cutting, and TrivialAugment), the
network's passes forward and backward as they are, captured as a CUDA graph, and with --compile compiled by torch; the
optimiser, the running average; and what an epoch has once: validation a batch, and saving. Adds a row for each device,
network, batch and size to benchmarks/results/step.json.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from handlens import files, nets
from handlens import photos as photos_room
from handlens.preprocess import Preprocess
from handlens.run.torch_runtime import default_device
from handlens.train import augment, loop, on_device, trial
from handlens.train.captured import Captured, Whole, captured
from handlens.train.depthwise import FasterDepthwise
from handlens.train.pixels import Pixels
from handlens.train.recipe import choose
from side_by_side import ROOT, machine

RESULTS = ROOT / "benchmarks" / "results" / "step.json"
NETS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--net", action="append", choices=NETS)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="")
    given = parser.parse_args()
    device = torch.device(given.device) if given.device else default_device()
    result: dict[str, Any] = files.read_json(RESULTS) if RESULTS.is_file() else {"rows": {}}
    result |= {"command": "python benchmarks/step.py PHOTOS"}
    named = torch.cuda.get_device_name() if device.type == "cuda" else machine()["processor"]
    pixels = pixels_of(given.photos, 4 * given.batch_size, given.px)
    table = Table("part", *(given.net or NETS), title=f"ms, {given.batch_size} photos of {given.px} px on {named}")
    columns = []
    for net in given.net or NETS:
        parts = parts_of(net, pixels, given, device)
        row = {**machine(), "precision": trial.usual_precision(device.type), "ms": parts}
        result["rows"][f"{named}, {net}, {given.batch_size}, {given.px} px"] = row
        files.write_json(RESULTS, result)
        columns.append(parts)
    for name in columns[0]:
        table.add_row(name, *(f"{parts[name]:.2f}" if name in parts else "" for parts in columns))
    Console().print(table)


def pixels_of(folder: str, count: int, px: int) -> Pixels:
    """Evenly chosen photos, to be decoded once."""
    found = photos_room.scan(folder)
    chosen = np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)
    return Pixels(found.select(np.unique(chosen)), Preprocess(image_px=px), 2048)


def parts_of(name: str, pixels: Pixels, given: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Milliseconds of each part."""
    count, num_classes = min(given.batch_size, len(pixels)), len(pixels.photos.classes)
    more = {"batch_size": count, "train_px": given.px, "image_px": given.px}
    recipe = choose([500] * 5, {"net": name, "mode": "scratch", "weights": "none", "photos": "x", **more})
    precision = trial.usual_precision(device.type)
    net = loop.prepare(nets.create(name, num_classes), recipe).to(device).train()
    make = on_device.batches(pixels, recipe, pixels.preprocess, device)
    indices = np.arange(count)
    optimizer = loop.optimizer_for(loop.parameter_groups(net, recipe), recipe)
    average = loop.Average(net, recipe.ema_decay)

    def ms(part: Callable[[], Any], times: int = given.times) -> float:
        seen = []
        for _ in range(times + 3):
            wait(device)
            start = time.perf_counter()
            part()
            wait(device)
            seen.append(1e3 * (time.perf_counter() - start))
        return statistics.median(seen[3:])

    found = {"a batch made": ms(lambda: make.make(indices, [0]))}
    found["of which cutting"] = ms(lambda: make.crops(indices, np.random.default_rng(0)))
    crops = make.crops(indices, np.random.default_rng(0))
    found["of which TrivialAugment"] = ms(lambda: augment.trivial_augment(crops, np.random.default_rng(0)))
    images, targets = make.make(indices, [0])

    def passes(through: Any) -> Callable[[], None]:
        def run() -> None:
            with FasterDepthwise():
                logits = through(images)[0]
            loop.soft_cross_entropy(logits, targets).backward()
            optimizer.zero_grad()

        return run

    whole = Whole(net, precision)
    found["passes"] = ms(passes(whole))
    through = captured(net, net, images, precision)
    if isinstance(through, Captured):
        found["passes, captured"] = ms(passes(through.graphed))
    if given.compile:
        found["passes, compiled"] = ms(passes(torch.compile(whole)))
    loop.soft_cross_entropy(whole(images)[0], targets).backward()
    found["optimiser"] = ms(optimizer.step)
    found["running average"] = ms(lambda: average.update(net))
    photos = np.zeros((64, given.px, given.px, 3), np.uint8)

    @torch.inference_mode()
    def judge() -> None:
        average.net(make.plain(photos)).argmax(1).tolist()

    found["validation, 64 photos"] = ms(judge, 5)
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "average": average.net.state_dict()}
    found["saving, to memory"] = ms(lambda: torch.save(state, io.BytesIO()), 3)
    return found


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
