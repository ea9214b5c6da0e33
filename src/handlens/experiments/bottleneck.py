"""A 1x1 convolution before a wide one: Szegedy et al. 2014, arXiv 1409.4842, section 4 (after Lin et al. 2013)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from handlens import cost
from handlens.experiments.result import Result, panels

INPUTS, FILTERS, KERNEL = 128, 256, 5
REDUCED = (8, 16, 32, 64, 96, 128)  # numbers of 1x1 filters
MAP_PX = 28


def experiment(runs: int = 30) -> Result:
    """Weights, MACs and time of 256 5x5 filters over 128 channels, directly and through ever more 1x1 filters.

    `runs`: how often each is timed.
    """
    shape = (1, INPUTS, MAP_PX, MAP_PX)
    maps = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    for reduced in (0, *REDUCED):
        layers = _layers(reduced).eval().to(memory_format=torch.channels_last)
        with torch.inference_mode():
            time = cost.measure(lambda layers=layers: layers(maps), threads, runs)  # type: ignore[misc]
        rows.append(
            {
                "one_by_one_filters": reduced or None,
                "weights": cost.count_params(layers),
                "macs": cost.macs_of(layers, *shape),
                "p10_ms": time.p10_ms,
            }
        )
    direct, through = rows[0], next(row for row in rows if row["one_by_one_filters"] == 32)
    share = through["weights"] / direct["weights"]
    # Each 1x1 filter has a weight for every input channel and brings a 5x5 plane for every output filter.
    even_at = direct["weights"] / (INPUTS + KERNEL**2 * FILTERS)

    figure, (weights, times) = panels(2)
    x = [row["one_by_one_filters"] for row in rows[1:]]
    for panel, key, label in ((weights, "weights", "weights"), (times, "p10_ms", f"ms, {threads} threads")):
        panel.plot(x, [row[key] for row in rows[1:]], marker="o", label="through 1x1 filters")
        panel.axhline(direct[key], color="tab:red", linestyle="--", label="directly")
        panel.set(xlabel="1x1 filters", ylabel=label, ylim=(0, None))
        panel.legend()
        panel.grid(alpha=0.3)
    return Result(
        finding=f"{direct['weights']:,} weights directly, {through['weights']:,} through 32 1x1 filters: {share:.1%}, "
        f"and of the MACs {through['macs'] / direct['macs']:.1%}, of the time "
        f"{through['p10_ms'] / direct['p10_ms']:.0%}. Up to {int(even_at)} 1x1 filters there is something to gain.",
        tables={f"{FILTERS} {KERNEL}x{KERNEL} filters over {INPUTS} channels of {MAP_PX} x {MAP_PX}": rows},
        numbers={
            "share_of_weights": share,
            "share_of_macs": through["macs"] / direct["macs"],
            "even_at_filters": even_at,
        },
        data={"input": list(shape), "runs_timed": runs, "p10_ms": "a tenth of the runs were quicker"},
        figure=figure,
    )


def _layers(reduced: int) -> nn.Sequential:
    wide = nn.Conv2d(reduced or INPUTS, FILTERS, KERNEL, padding=KERNEL // 2, bias=False)
    return nn.Sequential(nn.Conv2d(INPUTS, reduced, 1, bias=False), wide) if reduced else nn.Sequential(wide)
