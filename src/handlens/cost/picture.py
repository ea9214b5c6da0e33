"""Pictures of costs, as PNG bytes: a network's by stage and depth, and networks beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from handlens import figures
from handlens.cost.layers import Layer
from handlens.cost.pareto import front
from handlens.cost.report import Report

MEASURES = {  # key in a row: (axis, divisor)
    "macs": ("multiply-accumulates, M", 1e6),
    "num_params": ("parameters, M", 1e6),
    "size_bytes": ("float32 weights, MB", 1e6),
    "median_ms": ("latency of one photo, ms", 1.0),
}
MOST_LABELS = 12  # on a front; more would cover each other


class Stage(NamedTuple):
    """The layers of one resolution: `name` is the map's size, or "head" for what comes after the last map."""

    name: str
    num_params: int
    macs: int


def stages(layers: Sequence[Layer]) -> list[Stage]:
    """Layers by resolution, in order. Those without a map of their own (gates) belong to the stage around them."""
    run = [layer for layer in layers if layer.output_shape is not None]
    mapped = [index for index, layer in enumerate(run) if layer.is_map]
    last = mapped[-1] if mapped else -1
    if mapped:  # what runs before the first map, such as the norm of its weights, belongs to it
        run.insert(0, run.pop(mapped[0]))
    found: list[Stage] = []
    stride = 0.0
    for index, layer in enumerate(run):
        name = found[-1].name if found else "head"
        if index > last:
            name = "head"
        elif layer.is_map and ((layer.stride_px or 0) > stride or not found):
            stride, shape = layer.stride_px or 0, layer.output_shape or ()
            name = f"{shape[-2]} x {shape[-1]}" if len(shape) == 3 else f"{shape[0]} tokens"
        if not found or found[-1].name != name:
            found.append(Stage(name, 0, 0))
        before = found[-1]
        found[-1] = Stage(name, before.num_params + layer.num_params, before.macs + layer.macs)
    return found


def by_stage(report: Report, title: str) -> bytes:
    """MACs and parameters by stage, and the receptive field against depth, as a PNG."""
    figure = figures.figure(9, 4)
    figure.suptitle(title, parse_math=False)
    bars, depth = figure.subplots(1, 2)
    found = stages(report.layers)
    for offset, (label, values, colour) in enumerate(
        (
            ("MACs", [stage.macs for stage in found], "tab:blue"),
            ("parameters", [stage.num_params for stage in found], "tab:orange"),
        )
    ):
        total = max(1, sum(values))
        lefts = [index + 0.4 * offset for index in range(len(found))]
        bars.bar(lefts, [100 * value / total for value in values], 0.4, label=label, color=colour)
    bars.set_xticks([index + 0.2 for index in range(len(found))], [stage.name for stage in found], rotation=30)
    bars.set_ylabel("share of what is run, %")
    bars.set_xlabel("map")
    bars.legend()
    seen = [layer for layer in report.layers if layer.output_shape and layer.is_map]
    windowed = [(n, layer.receptive_field_px) for n, layer in enumerate(seen, 1) if layer.receptive_field_px]
    if windowed:
        depth.plot(*zip(*windowed, strict=True), drawstyle="steps-mid", label="what reaches a unit as values")
    depth.axhline(report.image_px, color="grey", linestyle=":", label=f"the photo, {report.image_px} px")
    whole = [n for n, layer in enumerate(seen, 1) if layer.sees_all and not layer.receptive_field_px]
    gated = [n for n, layer in enumerate(seen, 1) if layer.sees_all and layer.receptive_field_px]
    for places, label, strength in ((gated, "by factors, the whole photo", 0.1), (whole, "the whole photo", 0.3)):
        if places:
            depth.axvspan(places[0] - 0.5, places[-1] + 0.5, color="tab:red", alpha=strength, linewidth=0, label=label)
    depth.set_xlabel("layer")
    depth.set_ylabel("receptive field, px")
    depth.legend()
    return figures.png(figure)


def side_by_side(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Top-1 against each measure of `MEASURES` that the rows have, the Pareto front drawn and named, as a PNG.

    A row has "name", "family", "top1" (percent) and the measures; one without "top1" is left out.
    """
    rows = [row for row in rows if row["top1"] is not None]
    keys = [key for key in MEASURES if rows and all(row.get(key) is not None for row in rows)]
    figure = figures.figure(10, 4.2 * -(-max(1, len(keys)) // 2))
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):  # type: ignore[misc,unused-ignore]
        """Its choice of ticks, its numbers without powers of ten."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    families = list(dict.fromkeys(row["family"] for row in rows))
    for place, key in enumerate(keys, 1):
        label, divisor = MEASURES[key]
        axes = figure.add_subplot(-(-len(keys) // 2), 2, place)
        for number, family in enumerate(families):
            of = [row for row in rows if row["family"] == family]
            xs, ys = [row[key] / divisor for row in of], [row["top1"] for row in of]
            axes.scatter(xs, ys, s=18, color=f"C{number % 10}", label=family)
        best = [rows[index] for index in front([row[key] for row in rows], [row["top1"] for row in rows])]
        for left, right in pairwise(best):
            axes.plot([left[key] / divisor, right[key] / divisor], [left["top1"], right["top1"]], "k-", linewidth=0.7)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(Plain())
        axes.xaxis.set_minor_formatter(Plain(minor_thresholds=(1.5, 0.4)))
        axes.tick_params(axis="x", which="both", labelsize=8)
        middle = (min(row[key] for row in rows) * max(row[key] for row in rows)) ** 0.5
        for row in best[:: max(1, -(-len(best) // MOST_LABELS))]:
            where = (row[key] / divisor, row["top1"])
            offset, side = ((-4, 3), "right") if row[key] > middle else ((4, -8), "left")
            axes.annotate(
                row["name"], where, offset, textcoords="offset points", ha=side, fontsize=6.5, parse_math=False
            )
        axes.set_xlabel(label)
        axes.set_ylabel("published top-1, %")
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend(fontsize=7)
    return figures.png(figure)
