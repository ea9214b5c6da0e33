"""Width and resolution multipliers: Howard et al. 2017, arXiv 1704.04861, sections 3.3 and 3.4, Tables 6 and 7."""

from __future__ import annotations

import functools
from typing import Any

from handlens import cost, nets
from handlens.errors import counted
from handlens.evaluate.metrics import wilson
from handlens.experiments import small
from handlens.experiments.result import Result, panels

NET, LR = "mobilenet_v1", 0.1
WHOLE = (0.5, 64)  # width and image_px of the network that is shrunk
WIDTHS = (0.375, 0.25, 0.1875, 0.125)
SIZES_PX = (56, 48, 40, 32)


def experiment(
    seed: int = 0,
    epochs: int = 15,
    photos: str | None = None,
    widths: tuple[float, ...] = WIDTHS,
    sizes_px: tuple[int, ...] = SIZES_PX,
    most: int = small.MOST_PHOTOS,
    progress: small.Progress = None,
) -> Result:
    """MobileNetV1 made smaller by its width, and by the size of its photos; each trained from nothing."""
    plan = [("whole", *WHOLE)]
    plan += [("width", width, WHOLE[1]) for width in widths]
    plan += [("resolution", WHOLE[0], px) for px in sizes_px]
    sets = {px: small.load(photos, px, seed, most) for px in {px for _, _, px in plan}}
    data = sets[WHOLE[1]]
    tick = small.ticker(progress, len(plan) * small.steps(data, epochs, 32))
    rows: list[dict[str, Any]] = []
    for by, width, px in plan:
        arguments = {"width": width, "dropout": 0.0}
        net = small.create(functools.partial(nets.create, NET, data.num_classes, **arguments), seed)
        log = small.fit(net, sets[px], epochs, tick, seed=seed, lr=LR)
        costs = cost.count(NET, px, num_classes=data.num_classes, **arguments)
        top1 = log[-1]["test_top1"]
        low, high = wilson(round(top1 * len(data.test)), len(data.test))
        rows.append(
            {
                "shrunk_by": by,
                "width": width,
                "image_px": px,
                "weights": costs.num_params,
                "macs": costs.macs,
                "test_top1": top1,
                "test_top1_low": low,
                "test_top1_high": high,
            }
        )
    whole, by_width, by_px = rows[0], rows[len(widths)], rows[-1]
    return Result(
        finding=f"Whole (width {whole['width']}, {whole['image_px']} px, {whole['macs'] / 1e6:.1f} M MACs): top-1 "
        f"{whole['test_top1']:.1%}. {_shrunk(by_width, whole)}; {_shrunk(by_px, whole)}. MACs fall about with the "
        f"square of both, odd maps aside; weights fall with the width alone. The interval of each top-1 is about ± "
        f"{(whole['test_top1_high'] - whole['test_top1_low']) / 2:.1%}: smaller differences say nothing.",
        tables={f"{NET}, {counted(epochs, 'epoch')} each": rows},
        numbers={},
        data={**data.facts, "image_px": sorted(sets), "seed": seed, "epochs": epochs},
        figure=_figure(rows),
    )


def _shrunk(row: dict[str, Any], whole: dict[str, Any]) -> str:
    by = f"width {row['width']}" if row["shrunk_by"] == "width" else f"{row['image_px']} px"
    share, weights = (row[key] / whole[key] for key in ("macs", "weights"))
    return f"at {by} {row['test_top1']:.1%} with {share:.0%} of the MACs and {weights:.0%} of the weights"


def _figure(rows: list[dict[str, Any]]) -> Any:
    figure, axes = panels(2)
    for by in ("width", "resolution"):
        of = [row for row in rows if row["shrunk_by"] in ("whole", by)]
        top1 = [row["test_top1"] for row in of]
        ends = ([row["test_top1"] - row["test_top1_low"] for row in of],
                [row["test_top1_high"] - row["test_top1"] for row in of])  # fmt: skip
        for panel, key, label in ((axes[0], "macs", "million MACs"), (axes[1], "weights", "million weights")):
            panel.errorbar([row[key] / 1e6 for row in of], top1, ends, marker="o", capsize=3, label=f"by {by}")
            panel.set(xlabel=label, ylabel="test top-1, 95 % interval", xlim=(0, None))
            panel.grid(alpha=0.3)
    axes[0].legend()
    return figure
