"""Standard against depthwise-separable convolution: Howard et al. 2017, arXiv 1704.04861, section 3.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from handlens import cost
from handlens.experiments.result import Result, panels

KERNEL = 3
LAYERS = (  # of MobileNetV1's Table 1: size of the map, channels in and out
    (112, 32, 64), (56, 128, 128), (28, 256, 256), (14, 512, 512), (7, 1024, 1024),
)  # fmt: skip


def experiment(runs: int = 30, layers: tuple[tuple[int, int, int], ...] = LAYERS) -> Result:
    """The share of a standard convolution's cost by formula, count and time, and the bytes that each MAC moves.

    `runs`: how often each is timed; `layers`: of (map_px, channels in, channels out).
    """
    threads = torch.get_num_threads()
    ratios: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for px, inp, out in layers:
        maps = torch.randn(1, inp, px, px).contiguous(memory_format=torch.channels_last)
        depthwise = nn.Conv2d(inp, inp, KERNEL, padding=KERNEL // 2, groups=inp, bias=False)
        pointwise = nn.Conv2d(inp, out, 1, bias=False)
        steps = {
            "standard": nn.Conv2d(inp, out, KERNEL, padding=KERNEL // 2, bias=False),
            "depthwise": depthwise,
            "pointwise": pointwise,
        }
        seen = {name: _step(name, module, maps, threads, runs) for name, module in steps.items()}
        rows += seen.values()
        standard, parts = seen["standard"], (seen["depthwise"], seen["pointwise"])
        ratios.append(
            {
                "map_px": px,
                "channels": f"{inp} to {out}",
                "by_formula": 1 / out + 1 / KERNEL**2,
                "by_weights": sum(part["weights"] for part in parts) / standard["weights"],
                "by_macs": sum(part["macs"] for part in parts) / standard["macs"],
                "by_time": sum(part["p10_ms"] for part in parts) / standard["p10_ms"],
                "by_bytes": sum(part["megabytes"] for part in parts) / standard["megabytes"],
            }
        )
    thin = {key: sum(row[key] for row in rows if row["step"] == "depthwise") for key in ("macs", "p10_ms")}
    separable = {key: sum(row[key] for row in rows if row["step"] != "standard") for key in ("macs", "p10_ms")}
    share = {key: thin[key] / separable[key] for key in thin}
    means = {name: _mean(rows, name) for name in ("standard", "depthwise", "pointwise")}
    return Result(
        finding=f"Formula and count agree: {ratios[0]['by_macs']:.3f} to {ratios[-1]['by_macs']:.3f} of the MACs. Of "
        f"the time it is {min(row['by_time'] for row in ratios):.2f} to {max(row['by_time'] for row in ratios):.2f}. "
        f"The depthwise steps are {share['macs']:.1%} of the separable layers' MACs and {share['p10_ms']:.0%} of their "
        f"time: they move {means['depthwise']['bytes_per_mac']:.2g} bytes a MAC (standard "
        f"{means['standard']['bytes_per_mac']:.2g}, pointwise {means['pointwise']['bytes_per_mac']:.2g}) and do "
        f"{means['depthwise']['gmacs_per_s']:.3g} GMAC/s where the pointwise do "
        f"{means['pointwise']['gmacs_per_s']:.3g}.",
        tables={"Separable as a share of standard": ratios, "Each step, float32, one photo": rows},
        numbers={"means": means, "depthwise_share_of_macs": share["macs"], "depthwise_share_of_time": share["p10_ms"]},
        data={
            "kernel": KERNEL,
            "runs_timed": runs,
            "memory": "channels last",
            "p10_ms": "a tenth of the runs were quicker",
        },
        figure=_figure(ratios, rows),
    )


def _step(name: str, module: nn.Conv2d, maps: torch.Tensor, threads: int, runs: int) -> dict[str, Any]:
    module = module.to(memory_format=torch.channels_last).eval()
    with torch.inference_mode():
        time = cost.measure(lambda: module(maps), threads, runs)
        values = maps.numel() + module(maps).numel() + module.weight.numel()  # each read or written once
    macs = cost.macs_of(module, *maps.shape)
    return {
        "map_px": maps.shape[-1],
        "step": name,
        "weights": module.weight.numel(),
        "macs": macs,
        "megabytes": 4 * values / 1e6,
        "bytes_per_mac": 4 * values / macs,
        "p10_ms": time.p10_ms,
        "gmacs_per_s": macs / time.p10_ms / 1e6,
    }


def _mean(rows: list[dict[str, Any]], step: str) -> dict[str, float]:
    """Over all layers: bytes over MACs, and MACs over time."""
    of = [row for row in rows if row["step"] == step]
    macs = sum(row["macs"] for row in of)
    return {
        "bytes_per_mac": 1e6 * sum(row["megabytes"] for row in of) / macs,
        "gmacs_per_s": macs / sum(row["p10_ms"] for row in of) / 1e6,
    }


def _figure(ratios: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Any:
    figure, (left, right) = panels(2, width=5.2)
    names = [f"{row['map_px']}²\n{row['channels'].replace(' to ', '→')}" for row in ratios]
    for key, style in (("by_formula", "k--"), ("by_macs", "o"), ("by_time", "s-")):
        left.plot(names, [row[key] for row in ratios], style, label=key.replace("_", " "))
    left.set(ylabel="separable / standard", ylim=(0, None))
    left.legend()
    for step, marker in (("standard", "o"), ("pointwise", "^"), ("depthwise", "s")):
        of = [row for row in rows if row["step"] == step]
        right.loglog([r["bytes_per_mac"] for r in of], [r["gmacs_per_s"] for r in of], marker, label=step)
    right.set(xlabel="bytes moved per MAC", ylabel="GMAC/s reached")
    right.legend()
    right.grid(alpha=0.3, which="both")
    return figure
