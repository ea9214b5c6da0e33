"""Which parts of a network suffer from int8: each rounded alone, and the harm to the answers measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from handlens.compress.calls import inside, tensors_in
from handlens.compress.fake import KERNELS, LINEAR, Observed, Rounded, batches, ranges_of
from handlens.nets import Net

_CURVES = frozenset(("hardswish", "silu"))  # units of their own beside the layers with weights


class _Recorded(Observed):
    """Keeps the result of every operation, and the first kernel of every module."""

    def __init__(self, net: Net) -> None:
        super().__init__(net, {})
        self.results: list[Any] = []
        self.kernels: dict[str, tuple[int, set[str]]] = {}  # module: number of its first kernel, names of all

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in KERNELS:
            self.kernels.setdefault(self.scope, (len(self.results), set()))[1].add(name)
        self.results.append(super().call(name, func, args, kwargs))
        return self.results[-1]


class _Replayed(Rounded):
    """Takes the recorded results up to the first kernel that is rounded, and computes from there on."""

    def __init__(self, recorded: _Recorded, ranges: dict[str, tuple[float, float]], only: str) -> None:
        super().__init__(recorded.net, ranges, only)
        self.results = recorded.results
        self.first = min(recorded.kernels[module][0] for module in recorded.kernels if inside(module, only))
        self.done = 0

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.done += 1
        if self.done <= self.first:
            result = self.results[self.done - 1]
            for _ in range(len(tensors_in(result))):
                self.site(name)  # counts it
            return result
        return super().call(name, func, args, kwargs)


@torch.no_grad()
def rank(net: Net, images: Tensor) -> list[tuple[str, float]]:
    """(module, damage) of each part of a folded network, the worst first.

    Damage is the mean Kullback-Leibler divergence, in nats, of the probabilities on images (N, 3, H, W; as the
    network takes them) from the float ones, when the weights of this part alone and the activations that it reads
    and gives are rounded to 8 bits. Names are those of `net.named_modules()`: of layers with weights, curved
    activations (hard-swish, SiLU), and squeeze-and-excite modules, each as a whole.
    """
    net = copy.deepcopy(net).eval()
    for module in net.modules():
        if hasattr(module, "inplace"):  # would overwrite what is recorded
            module.inplace = False  # type: ignore[assignment]
    ranges = ranges_of(net, images)
    damage = dict.fromkeys(units(net, images[:1]), 0.0)
    for batch in batches(images, 4):  # few: every operation's result is held
        with _Recorded(net) as recorded:
            expected = net(batch).log_softmax(1)
        for name in damage:
            with _Replayed(recorded, ranges, name):
                found = net(batch).log_softmax(1)
            damage[name] += float((expected.exp() * (expected - found)).sum()) / len(images)
    return sorted(damage.items(), key=lambda item: -item[1])


@torch.no_grad()
def units(net: Net, image: Tensor) -> list[str]:
    """Names of the parts that `rank` judges, in the order in which they run."""
    with _Recorded(net) as recorded:
        net(image)
    kinds = {module: kernels for module, (_, kernels) in recorded.kernels.items()}
    # A module that multiplies in its own forward is a gate: with the layers inside it, one unit.
    gates = [module for module, kernels in kinds.items() if module and "mul" in kernels]
    found: dict[str, None] = {}
    for module, kernels in kinds.items():
        gate = next((gate for gate in gates if inside(module, gate)), None)
        if gate or not kernels.isdisjoint({*LINEAR, *_CURVES}):
            found[gate or module] = None
    return list(found)
