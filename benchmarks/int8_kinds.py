"""Dynamic and weight-only INT8 beside float and the ladder's static INT8, for the record:

    python benchmarks/int8_kinds.py --photos PHOTOS RUN...              sizes and answers on the test photos
    python benchmarks/int8_kinds.py --photos PHOTOS RUN... --latency    and latencies by turns, on an idle machine

Takes the float and static files from the bundles that benchmarks/int8.py made (--bundles). Dynamic: weights in 8 bits,
activations rounded while it runs, by onnxruntime's `quantize_dynamic` (unsigned, as its ConvInteger wants them) and by
ai-edge-quantizer; weight-only: weights in 8 bits, all arithmetic in float, by ai-edge-quantizer.
Writes benchmarks/results/int8_kinds.json and the table in docs/int8.md.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlens import bundle, checkpoint, files
from handlens import photos as photos_room
from handlens.compress import job as compress_job
from handlens.cost.latency import processor
from handlens.export import job, parity
from handlens.run import bundles
from side_by_side import all_versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "int8_kinds.json", ROOT / "docs" / "int8.md"
BEGIN, END = "<!-- int8 kinds -->", "<!-- /int8 kinds -->"
THREADS = (1, 2)
ROUNDS, CALLS, BATCH = 5, 30, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--photos", required=True, help="the runs' photos")
    parser.add_argument("--bundles", type=Path, default=ROOT / "bundles", help="where benchmarks/int8.py put them")
    parser.add_argument("--latency", action="store_true", help="measure latencies too")
    given = parser.parse_args()
    rows = [row for run in given.runs for row in rows_of(run, given.photos, given.bundles, given.latency)]
    results = {
        "command": "python benchmarks/int8_kinds.py --photos ../shared/data/flower_photos benchmarks/runs/* --latency",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "versions": all_versions(),
        "rows": rows,
    }
    files.write_json(RESULTS, results)
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}{END}{rest.partition(END)[2]}", "utf-8")


def rows_of(run: Path, photos: str, folder: Path, latency: bool) -> list[dict[str, Any]]:
    """What is known of every kind of file of a run, by runtime; the first of each runtime is the float one."""
    found = checkpoint.load(run)
    splits, _ = compress_job.own_splits(run, found, photos)
    source = job.Source.of(run.name, found, splits)
    test = splits["test"]
    pixels = [images for images, _ in photos_room.batches(test, found.preprocess, BATCH)]
    expected, logits = map(np.concatenate, zip(*map(source.reference.infer, pixels), strict=True))
    rows = []
    for to in ("onnx", "litert"):
        made = artifacts(run.name, to, folder)
        own = []
        for kind, artifact in made.items():
            infer = bundles.runtime_of(to).start(artifact, 2)[0]
            got, got_logits = map(np.concatenate, zip(*map(infer, pixels), strict=True))
            seen = parity.Parity(
                precision="int8", classes=found.classes, paths=test.paths, labels=test.labels, expected=expected,
                got=got, expected_logits=logits, got_logits=got_logits,
            )  # fmt: skip
            own.append(
                {
                    "run": run.name,
                    "net": found.name,
                    "image_px": found.preprocess.image_px,
                    "runtime": to,
                    "kind": kind,
                    "size_bytes": sum(map(len, artifact.values())),
                    "top1": seen.top1,
                    "agreement": seen.agreement,
                }
            )
            print(run.name, to, kind, f"{seen.top1:.1%} {seen.agreement:.1%}", own[-1]["size_bytes"], flush=True)
        if latency:
            for threads in THREADS:
                taken = latencies(made, to, found.preprocess.image_px, threads)
                for row in own:
                    row[f"latency_ms_{threads}"] = taken[row["kind"]]
        rows += own
    return rows


def artifacts(run: str, to: str, folder: Path) -> dict[str, dict[str, bytes]]:
    plain, static = (
        dict(bundle.read(folder / f"{run}-{to}-{precision}.zip").artifact) for precision in ("float32", "int8")
    )
    made = {"float": plain, "static": static}
    ((name, content),) = plain.items()
    if to == "onnx":
        return {**made, "dynamic": {name: onnx_dynamic(content)}}
    from ai_edge_quantizer import recipe

    return {
        **made,
        "dynamic": {name: litert(content, recipe.dynamic_wi8_afp32())},
        "weight-only": {name: litert(content, recipe.weight_only_wi8_afp32())},
    }


def onnx_dynamic(model: bytes) -> bytes:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as work:
        before, after = Path(work, "float.onnx"), Path(work, "int8.onnx")
        read = onnx.load_model_from_string(model)
        read.graph.ClearField("value_info")  # the quantiser turns the classifier's weights, and leaves their old shape
        onnx.save_model(read, before)
        quantize_dynamic(before, after, weight_type=QuantType.QUInt8)
        return after.read_bytes()


def litert(model: bytes, recipe: Any) -> bytes:
    from ai_edge_quantizer.quantizer import Quantizer

    return bytes(Quantizer(bytearray(model), recipe).quantize(enable_progress_report=False).quantized_model)


def latencies(made: Mapping[str, Any], to: str, px: int, threads: int) -> dict[str, dict[str, float]]:
    """Of one photo, the kinds by turns, so that a slow moment of the machine slows all of them."""
    infer = {kind: bundles.runtime_of(to).start(artifact, threads)[0] for kind, artifact in made.items()}
    photo = np.random.default_rng(0).integers(0, 256, (1, px, px, 3), dtype=np.uint8)
    taken: dict[str, list[float]] = {kind: [] for kind in made}
    for _ in range(ROUNDS):
        for kind, call in infer.items():
            for number in range(CALLS + 5):
                start = time.perf_counter()
                call(photo)
                if number >= 5:
                    taken[kind].append(1000 * (time.perf_counter() - start))
    tenths = {kind: statistics.quantiles(values, n=10, method="inclusive") for kind, values in taken.items()}
    return {
        kind: {"median": statistics.median(values), "p10": tenths[kind][0], "p90": tenths[kind][-1]}
        for kind, values in taken.items()
    }


HEADER = (
    "| network | runtime | INT8 | MB (smaller by) | top-1 | same answer | ms, 1 thread (times as fast) "
    "| ms, 2 threads (times as fast) |\n|---|---|---|---|--:|--:|---|---|\n"
)


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        if row["kind"] == "float":
            plain = row
        cells = [
            f"{row['net']}, {row['image_px']} px",
            row["runtime"],
            row["kind"] if row is not plain else "none: float",
            f"{row['size_bytes'] / 1e6:.2f}"
            + (f" ({1 - row['size_bytes'] / plain['size_bytes']:.0%})" if row is not plain else ""),
            f"{row['top1']:.1%}",
            f"{row['agreement']:.1%}",
        ]
        for key in (f"latency_ms_{threads}" for threads in THREADS):
            times = f"{row[key]['median']:.2f}" if key in row else ""
            if times and row is not plain:
                times += f" ({plain[key]['median'] / row[key]['median']:.1f})"
            cells.append(times)
        lines.append("| " + " | ".join(cells) + " |\n")
    return HEADER + "".join(lines)


if __name__ == "__main__":
    main()
