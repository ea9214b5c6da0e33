"""How many photos INT8 wants to be calibrated with: the ladder's first rung after 5, 10, 20 ... of them:

    python benchmarks/calibration_photos.py --photos PHOTOS RUN...

Calibrated with validation photos, as many of each class, three draws of each number; judged on the test photos, from
which nothing is chosen. Writes benchmarks/results/calibration_photos.json and the table in docs/int8.md.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import numpy as np

from handlens import checkpoint, files
from handlens.compress import job as compress_job
from handlens.compress import ladder, onnx
from handlens.cost.latency import processor
from handlens.export import job, parity
from side_by_side import all_versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "calibration_photos.json", ROOT / "docs" / "int8.md"
BEGIN, END = "<!-- calibration photos -->", "<!-- /calibration photos -->"
COUNTS = (5, 10, 20, 40, 80, 160)
DRAWS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--photos", required=True, help="the runs' photos")
    given = parser.parse_args()
    rows = [row for run in given.runs for row in rows_of(run, given.photos)]
    results = {
        "command": "python benchmarks/calibration_photos.py --photos ../shared/data/flower_photos benchmarks/runs/*",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "versions": all_versions(),
        "rows": rows,
    }
    files.write_json(RESULTS, results)
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}{END}{rest.partition(END)[2]}", "utf-8")


def rows_of(run: Path, photos: str) -> list[dict[str, Any]]:
    """Agreement with the float network and divergence from it, in nats, by number of photos and observer."""
    found = checkpoint.load(run)
    splits, _ = compress_job.own_splits(run, found, photos)
    source = job.Source.of(run.name, found, splits)
    validation = splits["validation"]
    rows = []
    for count in COUNTS:
        for observer in ("minmax", "mse"):
            seen = []
            for draw in range(DRAWS):
                order = np.random.default_rng(draw).permutation(len(validation))
                images = ladder.calibration_images(validation.select([int(i) for i in order]), source, count)
                artifact = onnx.quantizer(source.folded, found.preprocess, source.facts, images)(observer)
                exported = job.classifier(source, artifact, "onnx", "int8", 1)
                assert exported is not None
                seen.append(parity.compare(source.reference, exported, splits["test"]))
            row = {
                "run": run.name,
                "net": found.name,
                "observer": observer,
                "num_photos": count,
                "agreement": [parity.agreement for parity in seen],
                "divergence": [parity.divergence for parity in seen],
                "top1": [parity.top1 for parity in seen],
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a network and observer, a column a number of photos; means of the draws."""
    counts = sorted({row["num_photos"] for row in rows})
    lines = [
        "| network | ranges | " + " | ".join(f"{count} photos" for count in counts) + " |\n",
        "|---|---|" + "--:|" * len(counts) + "\n",
    ]
    for net, observer in dict.fromkeys((row["net"], row["observer"]) for row in rows):
        own = {row["num_photos"]: row for row in rows if (row["net"], row["observer"]) == (net, observer)}
        cells = (f"{np.mean(own[n]['agreement']):.1%}, {np.mean(own[n]['divergence']):.4f}" for n in counts)
        lines.append(f"| {net} | {observer} | " + " | ".join(cells) + " |\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
