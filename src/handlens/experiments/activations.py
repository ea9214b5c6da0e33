"""Swish, sigmoid, their piecewise-linear forms and ReLU: Howard et al. 2019, arXiv 1905.02244, section 5.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from handlens import cost
from handlens.experiments.result import Result, panels

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": F.silu,
    "h-swish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "h-sigmoid": F.hardsigmoid,
    "ReLU": F.relu,
    "ReLU6": F.relu6,
}
FORMULAS = {
    "swish": "x / (1 + exp(-x))", "h-swish": "x * ReLU6(x + 3) / 6", "sigmoid": "1 / (1 + exp(-x))",
    "h-sigmoid": "ReLU6(x + 3) / 6", "ReLU": "max(x, 0)", "ReLU6": "min(max(x, 0), 6)",
}  # fmt: skip
PAIRS = (("swish", "h-swish"), ("sigmoid", "h-sigmoid"))
SPAN, STEPS = 8.0, 160_000  # points from -SPAN to SPAN, 1e-4 apart: 3, where the hard forms have their corners, is one


def experiment(runs: int = 30, values: int = 1 << 20) -> Result:
    """Curves, the greatest distance between each pair, and the time of a forward pass over `values` values."""
    x = (torch.arange(STEPS + 1, dtype=torch.float64) - STEPS // 2) * (2 * SPAN / STEPS)
    curves = {name: function(x) for name, function in ACTIVATIONS.items()}
    distances = []
    for smooth, hard in PAIRS:
        apart = (curves[smooth] - curves[hard]).abs()
        where = STEPS // 2 + int(apart[STEPS // 2 :].argmax())  # for x of 0 and above
        distances.append(
            {
                "pair": f"{smooth}, {hard}",
                "greatest_distance": float(apart[where]),
                "at_x": float(x[where]),
                "distance_at_minus_x": float(apart[STEPS - where]),
            }
        )
    maps, threads = torch.randn(values), torch.get_num_threads()
    times: list[dict[str, Any]] = []
    for name, function in ACTIVATIONS.items():
        with torch.inference_mode():
            taken = cost.measure(lambda function=function: function(maps), threads, runs)  # type: ignore[misc]
        times.append(
            {
                "activation": name,
                "formula": FORMULAS[name],
                "p10_ms": taken.p10_ms,
                "ns_per_value": 1e6 * taken.p10_ms / values,
            }
        )
    ns = {row["activation"]: row["ns_per_value"] for row in times}
    for row in times:
        row["times_relu"] = row["ns_per_value"] / ns["ReLU"]

    figure, (left, middle, right) = panels(3)
    every = slice(None, None, 200)
    for name, curve in curves.items():
        shown = (x[every].abs() <= 6) if name in ("ReLU", "ReLU6", "swish", "h-swish") else slice(None)
        left.plot(x[every][shown].numpy(), curve[every][shown].numpy(), label=name, linewidth=1.2)
    left.set(xlabel="x", ylim=(-0.6, 6.5))
    left.legend(fontsize=8)
    for smooth, hard in PAIRS:
        middle.plot(x[every].numpy(), (curves[smooth] - curves[hard])[every].numpy(), label=f"{smooth} - {hard}")
    middle.set(xlabel="x", title="distance")
    middle.legend(fontsize=8)
    right.bar(list(ns), list(ns.values()))
    right.set(ylabel=f"ns a value, {threads} threads")
    right.tick_params(axis="x", rotation=30)
    for panel in (left, middle, right):
        panel.grid(alpha=0.3)
    swish, sigmoid = distances
    return Result(
        finding=f"h-swish is at most {swish['greatest_distance']:.4f} from swish, at x = ±{swish['at_x']:.3f}; "
        f"h-sigmoid at most {sigmoid['greatest_distance']:.4f} from sigmoid, at ±{sigmoid['at_x']:.3f}. Swish takes "
        f"{ns['swish'] / ns['h-swish']:.1f} times as long as h-swish, and h-swish "
        f"{ns['h-swish'] / ns['ReLU']:.1f} times as long as ReLU.",
        tables={"Distance": distances, f"Time of {values:,} float32 values": times},
        numbers={"x": x[::2000].tolist(), "curves": {name: curve[::2000].tolist() for name, curve in curves.items()}},
        data={
            "values_timed": values,
            "runs_timed": runs,
            "p10_ms": "a tenth of the runs were quicker",
            "grid_step": 2 * SPAN / STEPS,
        },
        figure=figure,
    )
