"""`handlens nets`: the networks, and what each costs."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import typer

WIDE = 120  # columns of a terminal that has room for where the accuracies come from


def nets(
    family: str = typer.Option("", help="Only this family."),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """List the networks with their size and published accuracy.

    Accuracy is top-1 on ImageNet, with its source where the terminal has 120 columns; the last column says who
    publishes weights that can be had.

    \b
    Examples:
      handlens nets
      handlens nets --family mobilenet --json
    """
    from handlens.cli import screen

    lines = rows(family)
    if json:
        screen.print_json(lines)
        return
    wide = not sys.stdout.isatty() or shutil.get_terminal_size().columns >= WIDE
    for group in dict.fromkeys(line["family"] for line in lines):
        cells = [
            (
                line["name"],
                line["year"],
                f"{line['num_params'] / 1e6:.2f}",
                f"{line['macs'] / 1e6:,.0f}",
                line["image_px"],
                "–" if line["top1"] is None else f"{line['top1']:.1f}",
                *([line["source"]] if wide else []),
                ", ".join(dict.fromkeys(file["source"] for file in line["weights"])) or "–",
            )
            for line in lines
            if line["family"] == group
        ]
        source = ("its source",) if wide else ()
        columns = ("name", "year", "params, M", "MACs, M", "px", "top-1 %", *source, "weights from")
        screen.table(group, columns, cells)
        screen.say("")
    if not wide:
        screen.note(f"--json, or a terminal of {WIDE} columns, tells where each top-1 comes from")


def rows(family: str = "") -> list[dict[str, Any]]:
    """For each network, grouped by family: all that the registry knows, its cost at `image_px`, and its weights.

    `top1` is in percent; `weights` lists the published files of ImageNet weights, best first.
    """
    from handlens import nets as room
    from handlens.errors import not_one_of
    from handlens.nets import weights

    families = list(dict.fromkeys(line.family for line in room.NETS.values()))
    if family and family not in families:
        raise not_one_of("--family", family, families)
    names = [name for group in families if family in ("", group) for name in room.names(group)]
    costs = costs_of(names)
    return [
        {
            "name": name,
            "family": line.family,
            "year": line.year,
            "num_params": costs[name][0],
            "macs": costs[name][1],
            "image_px": line.image_px,
            "top1": line.top1,
            "source": line.source,
            "weights": [
                {"source": file.source, "file": file.file, "top1": file.top1} for file in weights.published(name)
            ],
        }
        for name in names
        for line in (room.entry(name),)
    ]


def costs_of(names: list[str]) -> dict[str, list[int]]:
    """(num_params, macs) by name. Counting takes long enough that the answers are kept in the cache."""
    import hashlib
    from pathlib import Path

    from handlens import cost, files
    from handlens import nets as room
    from handlens.cli import screen
    from handlens.errors import HandlensError

    folders = [Path(str(module.__file__)).parent for module in (room, cost)]  # what is counted, and what counts
    sources = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    kept_at = files.cache_folder() / "costs" / f"{key}.json"
    try:
        kept: dict[str, list[int]] = files.read_json(kept_at)
    except (HandlensError, OSError):
        kept = {}
    missing = [name for name in names if name not in kept]
    if missing:
        with screen.progress("counting", len(missing)) as update:
            for done, name in enumerate(missing, 1):
                kept[name] = list(cost.count(name))
                update(done, len(missing))
        try:
            files.write_json(kept_at, kept)
        except HandlensError as error:  # a cache that cannot be written is no reason not to answer
            screen.note(f"not kept for the next time: {error}")
    return kept
