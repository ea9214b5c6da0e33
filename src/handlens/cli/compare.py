"""`handlens compare`: networks beside each other, accuracy against cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from handlens.cost import Latency

RUNS = 30  # that are measured, of each net
FRONTS = {"macs": "MACs", "num_params": "parameters", "size_bytes": "size", "median_ms": "latency"}


def compare(
    net: list[str] = typer.Argument(None, metavar="NET", show_default=False, help="Nets by name."),
    family: str = typer.Option("", help="All nets of this family."),
    latency: bool = typer.Option(True, "--latency/--no-latency", help="Measure latency on this machine."),
    threads: int | None = typer.Option(None, min=1, help="Threads to measure with. Default: torch's own choice."),
    runs: int | None = typer.Option(None, min=3, show_default=str(RUNS), help="Runs to measure, of each net."),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
    picture: Path | None = typer.Option(None, help="Write a picture (PNG): top-1 against each cost."),
) -> None:
    """Compare networks: published top-1 against MACs, parameters, file size and measured latency.

    Each at its published input size, with 1000 classes. Latency is that of one photo in PyTorch (eager, channels last,
    float32): the median, and between what a tenth of the runs are below and above. Exported files are faster, and not
    in the same order. The last column names the costs for which no other of these nets is both as cheap and as
    accurate: the Pareto front.

    \b
    Examples:
      handlens compare mobilenet_v1 mobilenet_v2 mobilenet_v3_large
      handlens compare --family mobilenet --no-latency --picture mobilenets.png
    """
    from handlens import files, nets
    from handlens.cli import screen
    from handlens.errors import HandlensError, not_one_of

    if bool(net) == bool(family):
        raise HandlensError("nothing to compare" if not net else "nets and a family", "name nets, or one --family")
    if picture:
        files.check_place(picture, ".png")
    names = list(dict.fromkeys(net)) if net else nets.names(family)
    if not names:
        raise not_one_of("--family", family or "", tuple(dict.fromkeys(line.family for line in nets.NETS.values())))
    if picture and all(nets.entry(name).top1 is None for name in names):
        raise HandlensError("none of these nets has a published top-1, which the picture shows", "leave out --picture")
    if not latency and (threads or runs):
        raise HandlensError("--threads and --runs are for measuring latency", "leave out --no-latency")
    found = rows(names)
    if latency:
        _time(found, threads, runs or RUNS)
    mark_fronts(found)
    if json:
        screen.print_json(found)
    else:
        _show(found)
    if picture:
        from handlens.cost import picture as pictures

        png = pictures.side_by_side(found)
        with files.atomic(picture) as file:
            file.write(png)


def rows(names: list[str]) -> list[dict[str, Any]]:
    """For each network its counted costs at the published size, and its published top-1 in percent or None."""
    from handlens import cost, nets
    from handlens.cli.nets import costs_of

    for name in names:
        nets.entry(name)
    counted = costs_of(names)
    return [
        {
            "name": name,
            "family": line.family,
            "image_px": line.image_px,
            "top1": line.top1,
            "source": line.source,
            "macs": counted[name][1],
            "num_params": counted[name][0],
            "size_bytes": cost.weight_bytes(nets.on_meta(name)).float32,
        }
        for name in names
        for line in (nets.entry(name),)
    ]


def mark_fronts(found: list[dict[str, Any]]) -> None:
    """Give each row "front": the costs for which it is on the Pareto front of those with a published top-1."""
    from handlens import cost

    for row in found:
        row["front"] = []
    for key in FRONTS:
        known = [row for row in found if row["top1"] is not None and row.get(key) is not None]
        for index in cost.front([row[key] for row in known], [row["top1"] for row in known]):
            known[index]["front"].append(key)


def time_net(name: str, image_px: int, runs: int) -> Latency:
    """Latency of one photo: float32, channels last, eager, with random weights and torch's present threads."""
    import torch

    from handlens import cost, nets

    channels_last: Any = torch.channels_last
    net = nets.create(name).eval().to(memory_format=channels_last)
    photo = torch.randn(1, 3, image_px, image_px).to(memory_format=channels_last)
    with torch.inference_mode():
        return cost.measure(lambda: net(photo), torch.get_num_threads(), runs)


def _time(found: list[dict[str, Any]], threads: int | None, runs: int) -> None:
    import torch

    from handlens.cli import screen
    from handlens.run.artifact import check_threads

    before = torch.get_num_threads()
    check_threads(threads or before)
    torch.set_num_threads(threads or before)
    try:
        with screen.progress("measuring", len(found)) as update:
            for done, row in enumerate(found, 1):
                row |= time_net(row["name"], row["image_px"], runs)._asdict()
                update(done, len(found))
    finally:
        torch.set_num_threads(before)


def _show(found: list[dict[str, Any]]) -> None:
    from handlens.cli import screen
    from handlens.errors import counted

    timed = "median_ms" in found[0]
    cells = [
        (
            row["name"],
            "–" if row["top1"] is None else f"{row['top1']:.1f}",
            row["image_px"],
            f"{row['macs'] / 1e6:,.0f}",
            f"{row['num_params'] / 1e6:.2f}",
            f"{row['size_bytes'] / 1e6:.1f}",
            *((f"{row['median_ms']:.1f}", f"{row['p10_ms']:.1f} to {row['p90_ms']:.1f}") if timed else ()),
            ", ".join(FRONTS[key] for key in row["front"]),
        )
        for row in found
    ]
    columns = ["net", "top-1, %", "px", "MACs, M", "params, M", "float32, MB"]
    columns += ["median, ms", "10 % to 90 %, ms"] if timed else []
    screen.table("", [*columns, "on the front of"], cells)
    if timed:
        runs = sorted({row["runs"] for row in found})
        counts = f"{runs[0]} to {runs[-1]}" if len(runs) > 1 else str(runs[0])
        screen.say(f"measured with {counted(found[0]['threads'], 'thread')}, {counts} runs each")
