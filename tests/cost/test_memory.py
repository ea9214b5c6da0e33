"""Peak bytes against what torch's allocator really gave out, and the bytes of weights against files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile

from handlens import nets
from handlens.cost import memory

FAMILIES = {  # a member of each family with the photo's size
    "mobilenet_v1_025": 96, "mobilenet_v2_035": 96, "mobilenet_v3_small": 96, "mobilenet_v3_large_035": 96,
    "xception": 107, "shufflenet_v1_x0_25_g8": 64, "shufflenet_v2_x0_5": 96, "efficientnet_b0": 64,
    "efficientnet_lite0": 64, "resnet18": 96, "resnet20": 32, "vit_ti_32": 224, "alexnet": 99, "vgg11_lrn": 64,
    "googlenet": 96, "googlenet_torchvision": 96, "inception_v3": 107,
}  # fmt: skip
Settled = Callable[[Callable[[], int]], int]
WRAPPERS = ("aten::max_pool2d",)  # of one operation that gives more than it: the places of the greatest values
LARGE = ("xception", "alexnet", "vgg11_lrn", "googlenet", "inception_v3")
LIKE_OTHERS = (
    "mobilenet_v1_025", "mobilenet_v2_035", "shufflenet_v1_x0_25_g8", "shufflenet_v2_x0_5", "efficientnet_lite0",
    "googlenet_torchvision", "resnet20",
)  # fmt: skip


def given_out(call: Callable[[], Any], without: Callable[[], set[int]] = set) -> int:
    """The most bytes that the CPU's allocator had given out at once while `call` ran, as torch's profiler saw it.

    What one operation takes and gives back itself is its work space and left out, and what lies at the addresses
    that `without` names at the end.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = call()
    events: list[tuple[int, int, int, int | None]] = []  # (time, address, bytes, outermost operation)

    def walk(event: Any, operation: int | None) -> None:
        outer = event.tag.name == "TorchOp" and event.name.startswith("aten::") and event.name not in WRAPPERS
        if operation is None and outer:
            operation = event.id
        if event.tag.name == "Allocation":
            fields = event.extra_fields
            events.append((event.start_time_ns, fields.ptr, fields.alloc_size, operation))
        for child in event.children:
            walk(child, operation)

    for root in profiler.profiler.kineto_results.experimental_event_tree():
        walk(root, None)
    events.sort(key=lambda event: event[0])
    changes = [size for _, _, size, _ in events]
    taken: dict[int, int] = {}  # address: index of its event
    for index, (_, address, size, operation) in enumerate(events):
        if size > 0:
            taken[address] = index
        elif (before := taken.pop(address, None)) is not None and operation == events[before][3] is not None:
            changes[before] = changes[index] = 0
    for address, index in taken.items():
        if address in without():
            changes[index] = 0
    now = most = 0
    for change in changes:
        now += change
        most = max(most, now)
    del kept
    return most


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE + LIKE_OTHERS else n for n in FAMILIES]
)
def test_peaks_are_what_the_allocator_gives_out(name: str, settled: Settled) -> None:
    px = FAMILIES[name]
    net = nets.create(name, 10).eval()
    photo, photos = torch.zeros(1, 3, px, px), torch.zeros(2, 3, px, px)
    with torch.no_grad():
        measured = photo.nbytes + settled(lambda: given_out(lambda: net(photo)))
    assert settled(lambda: memory.peak_inference_bytes(net, px)) == pytest.approx(measured, rel=0.01)

    def step() -> None:
        logits, auxiliary = net.forward_train(photos)
        sum((output.sum() for output in auxiliary), logits.sum()).backward()

    net.train()
    gradients = lambda: {value.grad.data_ptr() for value in net.parameters() if value.grad is not None}  # noqa: E731

    def measure() -> int:
        net.zero_grad()
        return given_out(step, gradients)

    measured = (photos.nbytes + settled(measure)) / 2
    assert settled(lambda: memory.peak_training_bytes(net, px)) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11", "mobilenet_v2", "shufflenet_v2_x1_0"])
def test_a_pass_keeps_no_map_that_it_does_not_need(name: str, settled: Settled) -> None:
    """It takes what torchvision's same network takes, which gives no maps but the last."""
    ours = nets.on_meta(name)
    theirs = torchvision.models.get_model(name, weights=None)
    expected = settled(lambda: memory.peak_inference_bytes(theirs, 224))
    assert settled(lambda: memory.peak_inference_bytes(ours, 224)) <= expected


def test_by_hand(settled: Settled) -> None:
    """A photo of 12 kB; maps of 4 channels have 16 kB."""

    def peak(net: nn.Module) -> int:
        return settled(lambda: memory.peak_inference_bytes(net, 32))

    kb = 32 * 32 * 4
    conv = nn.Conv2d(3, 4, 3, padding=1)
    assert peak(conv) == (3 + 4) * kb
    assert peak(nn.Sequential(conv, nn.ReLU())) == (3 + 4 + 4) * kb
    assert peak(nn.Sequential(conv, nn.ReLU(inplace=True))) == (3 + 4) * kb
    assert peak(nn.Sequential(conv, nn.Flatten())) == (3 + 4) * kb
    two = nn.Sequential(conv, nn.Conv2d(4, 1, 1), nn.Conv2d(1, 1, 1))  # the second runs while its input still lives
    assert peak(two) == (3 + 4 + 1) * kb


def test_training_keeps_what_the_backward_pass_reads(settled: Settled) -> None:
    deep = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(8)))
    kb = 32 * 32 * 4
    assert settled(lambda: memory.peak_inference_bytes(deep, 32)) == 3 * 3 * kb
    assert 9 * 3 * kb <= settled(lambda: memory.peak_training_bytes(deep, 32)) <= 11 * 3 * kb


def test_frozen_or_not_and_left_as_it_was(settled: Settled) -> None:
    net = nets.create("mobilenet_v3_small_035", 5)
    expected = settled(lambda: memory.peak_training_bytes(net, 64))
    for value in net.features.parameters():
        value.requires_grad_(False)
    assert settled(lambda: memory.peak_training_bytes(net, 64)) == expected
    assert net.training and not any(value.requires_grad for value in net.features.parameters())
    assert all(value.grad is None for value in net.parameters())


def test_float_weights_are_what_a_file_holds(tmp_path: Path) -> None:
    net = nets.create("mobilenet_v3_small_035", 5)
    values = {key: value for key, value in net.state_dict().items() if value.is_floating_point()}
    safetensors.torch.save_file(values, tmp_path / "weights.safetensors")
    size = (tmp_path / "weights.safetensors").stat().st_size
    header = 8 + int.from_bytes((tmp_path / "weights.safetensors").read_bytes()[:8], "little")
    counted = memory.weight_bytes(net)
    assert counted.float32 == size - header == 2 * counted.float16


def test_int8_by_hand() -> None:
    conv = nn.Conv2d(3, 8, 3, bias=False)
    assert memory.weight_bytes(conv).int8 == 8 * 27 + 8 * (4 + 4)
    assert memory.weight_bytes(nn.Conv2d(3, 8, 3)) == (4 * 224, 2 * 224, 8 * 27 + 8 * 8)
    assert memory.weight_bytes(nn.Sequential(conv, nn.BatchNorm2d(8))).int8 == 8 * 27 + 8 * 8
    assert memory.weight_bytes(nn.ConvTranspose2d(4, 6, 3, groups=2)).int8 == 4 * 3 * 9 + 6 * 8
    assert memory.weight_bytes(nn.Linear(4, 10)).int8 == 40 + 80
    assert memory.weight_bytes(nn.LayerNorm(16)).int8 == 4 * 32
    vit = nets.on_meta("vit_ti_32")
    attention = vit.encoder.layers[0].self_attention
    assert memory.weight_bytes(attention).int8 == 192 * 576 + 576 * 8 + 192 * 192 + 192 * 8
    assert memory.weight_bytes(vit.tokens).int8 == 4 * (192 + 50 * 192)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_int8_is_without_auxiliary_classifiers(name: str) -> None:
    """They are in the file that training continues from, and in nothing that is run."""
    full, without = (memory.weight_bytes(nets.on_meta(name, aux=aux)) for aux in (True, False))
    assert full.int8 == without.int8
    assert full.float32 > without.float32


def test_int8_is_near_a_quarter() -> None:
    """Of the networks that are matrices and filters for the most part."""
    for name in ("mobilenet_v2", "resnet18", "alexnet"):
        counted = memory.weight_bytes(nets.on_meta(name))
        assert 0.24 < counted.int8 / counted.float32 < 0.27
