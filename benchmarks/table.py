"""Write the tables of results from benchmarks/results: python benchmarks/table.py

The README has those of the folder itself, docs/recipes.md those of `earlier`: runs with a recipe or a split that has
since been changed. A file holds one measurement: the keys in KEYS, and "to_beat" where there is an earlier figure.
Accuracies are fractions. A file with neither "epochs" nor "test" measures something else and is passed over.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results -->", "<!-- /results -->"
FOLDERS = {"README.md": "benchmarks/results", "docs/recipes.md": "../benchmarks/results/earlier"}  # as linked
KEYS = (
    "command", "net", "mode", "weights", "image_px", "epochs", "test", "validation", "seconds", "device", "date",
    "commit", "versions",
)  # fmt: skip
HEADER = (
    "| network | mode | weights | px | epochs | top-1 on the test split (95 % interval) | to beat | time | on |\n"
    "|---|---|---|--:|--:|---|--:|--:|---|\n"
)
MODES = ("head", "last", "full", "scratch")


def read(folder: Path) -> list[dict[str, Any]]:
    """The measurements in a folder, by mode and then by name. A file that lacks a key ends the program, named."""
    results = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "epochs" not in result and "test" not in result:
            continue
        if missing := [key for key in KEYS if key not in result]:
            sys.exit(f"{path} has no {', '.join(missing)}")
        results.append({**result, "file": path.name})
    return sorted(results, key=lambda result: (MODES.index(result["mode"]), result["net"], result["file"]))


def table(results: Iterable[Mapping[str, Any]], folder: str) -> str:
    """The measurements as Markdown, each network's name linked to its file in `folder`, as the page sees it."""
    rows = []
    for result in results:
        test = result["test"]
        low, high = test["top1_ci95"]
        to_beat = result.get("to_beat")
        cells = (
            f"[{result['net']}]({folder}/{result['file']})",
            result["mode"],
            result["weights"],
            result["image_px"],
            result["epochs"],
            f"**{test['top1']:.1%}** ({low:.1%} to {high:.1%}) of {test['num_photos']}",
            "" if to_beat is None else f"{to_beat:.1%}",
            duration(result["seconds"]),
            result["device"],
        )
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n")
    return HEADER + "".join(rows)


def duration(seconds: float) -> str:
    """12 s, 34 min, 5.6 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def between(page: str, begin: str, end: str, text: str) -> str:
    """`page` with what is between the two marker lines replaced by `text`."""
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        sys.exit(f"the page has no {begin} ... {end}")
    return f"{before}{begin}\n{text}{end}{after}"


def written(page: Path, folder: str) -> str:
    """The text of a page with its table brought up to date from `folder`, a path as the page links it."""
    results = read(page.parent / folder)
    return between(page.read_text(encoding="utf-8"), BEGIN, END, table(results, folder))


if __name__ == "__main__":
    for name, folder in FOLDERS.items():
        page = ROOT / name
        page.write_text(written(page, folder), encoding="utf-8", newline="\n")
