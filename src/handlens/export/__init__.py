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


def check_target(to: str, precision: str = "float32") -> None:
    """Raise HandlensError for a name that is no target, and for one that gains nothing by a "float16" or "bfloat16"."""
    if to not in RUNTIMES:
        raise not_one_of("the target", to, (*RUNTIMES, "web"))
    if precision == "float16" and to == "executorch":  # a network in it does compute in it, with errors of nearly 0.01
        raise HandlensError(
            "executorch stores the weights of convolutions in float32 only, so float16 makes no file smaller",
            "use --int8, or another --to",
        )
    if precision == "bfloat16" and to != "openvino":
        raise HandlensError(f"{to} does not compute in bfloat16", "use --to openvino, or leave out --bfloat16")


def folded(net: Net) -> Net:
    """What is exported of a network: a copy in evaluation mode, its batch norm folded into the convolutions.

    Its activations write nothing over their inputs: exporters trace such ones in two thirds of the time.
    """
    copied = fold.fold_batch_norm(net)
    for module in copied.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    return copied


def convert(
    net: Net, preprocess: Preprocess, to: str, facts: str = "{}", precision: str = "float32"
) -> dict[str, bytes]:
    """The artifact for one of the runtimes: its members and their content. `net` is `folded` already.

    precision: "float32", "float16" or "bfloat16".
    """
    check_target(to, precision)
    rounded = {} if precision == "float32" else {precision: True}
    artifact: dict[str, bytes] = importlib.import_module(f"handlens.export.{to}").convert(
        net, preprocess, facts, **rounded
    )
    return artifact


def runner(to: str, threads: int = 0) -> Callable[[Mapping[str, bytes]], Callable[[np.ndarray], Any]]:
    """artifact -> the function of uint8 photos that it is on its runtime."""
    start = runtime_of(to).start
    return lambda artifact: start(artifact, threads)[0]
