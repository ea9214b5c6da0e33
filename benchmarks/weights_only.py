"""INT8 by the weights alone, beside float, on three runtimes:

    python benchmarks/weights_only.py --photos PHOTOS RUN...

Each file is made as `handlens export RUN --int8 --weights-only` makes it, through the gate on the test photos. Writes
benchmarks/results/weights_only.json, where what is measured already is kept, and the table in docs/int8.md.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

from handlens import checkpoint, compress, files
from handlens.errors import HandlensError
from side_by_side import ROOT, machine

RESULT, PAGE = ROOT / "benchmarks" / "results" / "weights_only.json", ROOT / "docs" / "int8.md"
BEGIN, END = "<!-- weights only -->", "<!-- /weights only -->"
RUNTIMES = ("onnx", "litert", "openvino")
HEADER = (
    "| network | runtime | MB, float → weights in INT8 | float top-1 | top-1 | same answer | ms, float → INT8 |\n"
    "|---|---|---|--:|--:|--:|---|\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--photos", required=True, help="the runs' photos")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    command = f"python benchmarks/weights_only.py --photos PHOTOS benchmarks/runs/* --threads {given.threads}"
    rows = files.read_json(RESULT)["rows"] if RESULT.is_file() else []
    for run, to in itertools.product(given.runs, RUNTIMES):
        if any((row["run"], row["runtime"]) == (run.name, to) for row in rows):
            continue
        rows.append(row_of(run, given.photos, to, given.threads))
        rows.sort(key=lambda row: (row["run"], RUNTIMES.index(row["runtime"])))
        files.write_json(RESULT, {"command": command, **machine(), "rows": rows})
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}{END}{rest.partition(END)[2]}", "utf-8")


def row_of(run: Path, photos: str, to: str, threads: int) -> dict[str, Any]:
    """What the card of a bundle says, or why there is none."""
    try:
        with tempfile.TemporaryDirectory() as work:
            made = compress.export(
                run, to, "int8", out=Path(work, "bundle"), photos=photos, weights_only=True, threads=threads
            )
    except HandlensError as error:
        print(run.name, to, error, flush=True)
        facts = checkpoint.read_facts(run)
        px = facts["preprocess"]["image_px"]
        return {"run": run.name, "net": facts["net"], "image_px": px, "runtime": to, "failed": error.message}
    card, found = made.bundle.card, made.parity
    assert found is not None
    row = {
        "run": run.name,
        "net": made.bundle.net,
        "image_px": made.bundle.preprocess.image_px,
        "runtime": to,
        "size_bytes": [card["float32"]["size_bytes"], card["size_bytes"]],
        "float_top1": card["test"]["network"]["top1"],
        "top1": found.top1,
        "agreement": found.agreement,
        "num_photos": len(found.paths),
        "latency_ms": [card["float32"]["latency"]["median_ms"], card["latency"]["median_ms"]],
    }
    print(row, flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """A line a file."""
    lines = []
    for row in rows:
        name = f"{row['net']}, {row['image_px']} px"
        if "failed" in row:
            lines.append(f"| {name} | {row['runtime']} | {row['failed']} | | | | |\n")
            continue
        whole, small = (size / 1e6 for size in row["size_bytes"])
        before, after = row["latency_ms"]
        cells = [
            name,
            row["runtime"],
            f"{whole:.2f} → {small:.2f} ({small / whole:.0%})",
            *(f"{row[key]:.1%}" for key in ("float_top1", "top1", "agreement")),
            f"{before:.2f} → {after:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return HEADER + "".join(lines)


if __name__ == "__main__":
    main()
