"""From a trained network to one file for another runtime: `convert`, `runner`. `job.finish` proves it on photos."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from handlens.bundle import RUNTIMES
from handlens.errors import HandlensError, not_one_of
from handlens.nets import Net, fold
from handlens.preprocess import Preprocess
from handlens.run.bundles import runtime_of

__all__ = ["check_target", "convert", "folded", "runner"]


def check_target(to: str, float16: bool = False) -> None:
    """Raise HandlensError for a name that is no target, and for `float16` where it makes no file smaller."""
    if to not in RUNTIMES:
        raise not_one_of("the target", to, (*RUNTIMES, "web"))
    if float16 and to == "executorch":  # a network in float16 does compute in it, with errors of nearly 0.01
        raise HandlensError(
            "executorch stores the weights of convolutions in float32 only, so float16 makes no file smaller",
            "use --int8, or another --to",
        )


def folded(net: Net) -> Net:
    """What is exported of a network: a copy in evaluation mode, its batch norm folded into the convolutions.

    Its activations write nothing over their inputs: exporters trace such ones in two thirds of the time.
    """
    copied = fold.fold_batch_norm(net)
    for module in copied.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    return copied


def convert(net: Net, preprocess: Preprocess, to: str, facts: str = "{}", float16: bool = False) -> dict[str, bytes]:
    """The artifact for one of the runtimes: its members and their content. `net` is `folded` already."""
    check_target(to, float16)
    artifact: dict[str, bytes] = importlib.import_module(f"handlens.export.{to}").convert(
        net, preprocess, facts, float16
    )
    return artifact


def runner(to: str, threads: int = 0) -> Callable[[Mapping[str, bytes]], Callable[[np.ndarray], Any]]:
    """artifact -> the function of uint8 photos that it is on its runtime."""
    start = runtime_of(to).start
    return lambda artifact: start(artifact, threads)[0]
