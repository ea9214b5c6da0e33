"""Write docs/cost.md: python docs/cost.py

What is counted comes from the code, what the counting tools say from benchmarks/results/counters.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from handlens import cost, nets
from handlens.cli.screen import progress

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cost.md"
COUNTERS = ROOT / "benchmarks" / "results" / "counters.json"
HEADER = (
    "| network | px | top-1, % | MACs, M | parameters, M | file, MB | int8, MB | inference, MB | training, MB "
    "| window, px | front |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n"
)
FRONTS = {"macs": "MACs", "num_params": "parameters"}
TOOLS = {  # key in the file: what stands above its column
    "fvcore": "fvcore",
    "torchinfo": "torchinfo",
    "ptflops": "ptflops",
    "ptflops_modules": "ptflops by modules",
    "ptflops_modules_plain": "the same, plain convolutions",
}


def rows(names: Iterable[str]) -> list[dict[str, Any]]:
    """What each network costs at its published size with 1000 classes."""
    names = list(names)
    found = []
    with progress("counting", len(names)) as update:
        for done, name in enumerate(names, 1):
            report = cost.report_on(name)
            found.append(
                {
                    "name": name,
                    "image_px": report.image_px,
                    "top1": nets.entry(name).top1,
                    "macs": report.macs,
                    "num_params": report.num_params,
                    "weight_bytes": report.weight_bytes,
                    "peak_activation_bytes": report.peak_activation_bytes,
                    "peak_training_bytes": report.peak_training_bytes,
                    "receptive_field_px": report.receptive_field_px,
                    "sees_all": report.sees_all,
                }
            )
            update(done, len(names))
    return found


def costs(found: Sequence[Mapping[str, Any]]) -> str:
    """The table of the registry; the last column says on which Pareto fronts of the whole table a network is."""
    known = [row for row in found if row["top1"] is not None]
    fronts: dict[str, list[str]] = {row["name"]: [] for row in found}
    for key, label in FRONTS.items():
        for index in cost.front([row[key] for row in known], [row["top1"] for row in known]):
            fronts[known[index]["name"]].append(label)
    text = HEADER
    for row in found:
        cells = (
            f"`{row['name']}`",
            row["image_px"],
            "" if row["top1"] is None else f"{row['top1']:.1f}",
            f"{row['macs'] / 1e6:,.1f}",
            f"{row['num_params'] / 1e6:.2f}",
            f"{row['weight_bytes'].float32 / 1e6:.1f}",
            f"{row['weight_bytes'].int8 / 1e6:.1f}",
            f"{row['peak_activation_bytes'] / 1e6:.1f}",
            f"{row['peak_training_bytes'] / 1e6:.1f}",
            "all" if row["receptive_field_px"] is None else f"{row['receptive_field_px']}{'*' * row['sees_all']}",
            ", ".join(fronts[row["name"]]),
        )
        text += "| " + " | ".join(map(str, cells)) + " |\n"
    return text


def counters(result: Mapping[str, Any]) -> str:
    """What each tool says of each network, as millions and as the difference from ours."""
    versions = ", ".join(f"{tool} {number}" for tool, number in result["versions"].items())
    text = f"With {versions}.\n\n| network | ours, M | " + " | ".join(TOOLS.values()) + " |\n"
    text += "|---|--:|" + "--:|" * len(TOOLS) + "\n"
    for name, row in result["nets"].items():
        said = [difference(row.get(key), row["macs"]) for key in TOOLS]
        text += f"| `{name}` | {row['macs'] / 1e6:,.1f} | " + " | ".join(said) + " |\n"
    for name, row in result["nets"].items():
        for key, reason in row.items():
            if key.endswith("_reason"):
                text += f"\n`{name}`: {key.removesuffix('_reason')} gave nothing: {reason}.\n"
    return text


def difference(said: int | None, macs: int) -> str:
    """1,234.5 (+2.3 %): what a tool says in millions, and how far from ours."""
    if said is None:
        return "–"
    if said == macs:
        return "as ours"
    share = 100 * (said - macs) / macs
    return f"{said / 1e6:,.1f} ({share:+.{1 if abs(share) >= 0.05 else 4}f} %)"


def between(page: str, name: str, text: str) -> str:
    """`page` with what is between <!-- name --> and <!-- /name --> replaced by `text`."""
    before, rest = page.split(f"<!-- {name} -->")
    _, after = rest.split(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n{text}<!-- /{name} -->{after}"


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """The text of docs/cost.md with its tables written anew."""
    text = between(PAGE.read_text("utf-8"), "costs", costs(found))
    return between(text, "counters", counters(json.loads(COUNTERS.read_text("utf-8"))))


if __name__ == "__main__":
    PAGE.write_text(page(rows(nets.names())), encoding="utf-8", newline="\n")
