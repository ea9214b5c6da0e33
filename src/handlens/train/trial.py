"""Short trials on the device: which precision is faster, and how long a step of training takes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch

from handlens.nets import Net
from handlens.train import loop
from handlens.train.depthwise import FasterDepthwise
from handlens.train.distil import Teacher
from handlens.train.recipe import Precision, Recipe

_STEPS = 4  # of each precision, without the first of which the quickest counts
_FIRST_S = 1.0  # what a first step may take longer than others


def usual_precision(device: str) -> Precision:
    """Mixed precision where the device has it in hardware, else float32, by the device's name alone."""
    if device == "cpu" or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def faster_precision(
    net: Net,
    recipe: Recipe,
    device: torch.device,
    teacher: Teacher | None = None,
    takes: tuple[int, ...] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Precision, float]:
    """The precision to train in, and its seconds a step, from trials on this device.

    takes: the shape of what the network takes of a photo, where that is no photo. progress: called with steps (done,
    total).

    On the CPU "auto" tries float32 and bfloat16, for which is faster differs by network and processor; mixed
    precision has to win by a tenth, and its trial ends early where it is far behind: a processor without it may take
    ten times as long. Elsewhere, or with a precision given, only the time is measured.
    """
    candidates: list[Precision] = [recipe.precision]
    if recipe.precision == "auto":
        candidates = ["32-true", "bf16-mixed"] if device.type == "cpu" else [usual_precision(device.type)]
    seconds: dict[Precision, float] = {}
    for number, precision in enumerate(candidates):
        enough_s = 2 * seconds["32-true"] + _FIRST_S if seconds else math.inf

        def tick(done: int, number: int = number) -> None:
            progress(_STEPS * number + done, _STEPS * len(candidates))

        seconds[precision] = step_s(net, recipe, precision, device, teacher, takes, enough_s, tick)
        tick(_STEPS)
    best = min(seconds, key=lambda precision: seconds[precision] * (1.0 if precision == "32-true" else 1.1))
    return best, seconds[best]


def step_s(
    net: Net,
    recipe: Recipe,
    precision: str,
    device: torch.device,
    teacher: Teacher | None = None,
    takes: tuple[int, ...] = (),
    enough_s: float = math.inf,
    tick: Callable[[int], None] = lambda done: None,
) -> float:
    """Seconds of a step of training; the network stays as it is.

    enough_s: after a step that takes longer no other is tried. tick: called with the number of steps before each.
    """
    tried = copy.deepcopy(net).to(device)
    if teacher:
        teacher.to(device)
    loop.training_mode(tried, recipe)
    optimizer = loop.optimizer_for(loop.parameter_groups(tried, recipe), recipe)
    px = recipe.train_px or recipe.image_px
    images = torch.zeros((recipe.batch_size, *(takes or (3, px, px))), device=device)
    if images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.full((recipe.batch_size, net.num_classes), 1 / net.num_classes, device=device)
    dtype = torch.float16 if precision.startswith("16") else torch.bfloat16
    times = []
    for number in range(_STEPS):
        tick(number)
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=precision != "32-true"), FasterDepthwise():
            loss, logits = loop.loss_of(tried, images, targets, None)
            if teacher:
                loss = teacher.loss(images, logits, loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        times.append(time.perf_counter() - start)
        if times[-1] > enough_s:
            return times[-1]
    return min(times[1:])


@torch.inference_mode()
def pass_s(net: Net, recipe: Recipe, device: torch.device) -> float:
    """Seconds that a pass forward of a batch takes, in evaluation mode."""
    images = torch.zeros((4, 3, recipe.image_px, recipe.image_px), device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        net(images).sum().item()
        times.append(time.perf_counter() - start)
    return min(times) / len(images) * recipe.batch_size
