"""Float and INT8 of trained networks on the runtimes, by the way of `handlens export`:

    python benchmarks/int8.py --photos PHOTOS RUN...              the cells that are not there yet
    python benchmarks/int8.py --photos PHOTOS RUN... --latency    all latencies again, interleaved, on an idle machine

Writes benchmarks/results/int8.json after each cell, the table in docs/int8.md and the picture docs/images/int8.png.
A cell is met if 98 % of the test photos get the float network's answer and top-1 falls by no more than half a point or
1.96 paired standard errors; one that is not is kept, with what was best on validation.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from handlens import bundle, checkpoint, compress, files
from handlens.compress import job as compress_job
from handlens.compress import ladder
from handlens.cost.latency import processor
from handlens.errors import HandlensError
from handlens.export import job, parity
from handlens.run import bundles
from side_by_side import all_versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "int8.json"
PAGE, PICTURE = ROOT / "docs" / "int8.md", ROOT / "docs" / "images" / "int8.png"
BEGIN, END = "<!-- int8 -->", "<!-- /int8 -->"
RUNTIMES = ("onnx", "litert", "executorch", "openvino")
THREADS = (1, 2)
ROUNDS, CALLS = 5, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--photos", help="the runs' photos")
    parser.add_argument("--to", action="append", choices=RUNTIMES, help="only these runtimes")
    parser.add_argument(
        "--bundles", type=Path, default=ROOT / "bundles", help="where the bundles are put and looked for"
    )
    parser.add_argument("--latency", action="store_true", help="measure the latencies of all cells again")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {"cells": []}
    for run in given.runs:
        for to in given.to or RUNTIMES[:3]:
            if not any(cell["run"] == run.name and cell["runtime"] == to for cell in results["cells"]):
                print(f"{run.name} on {to}", flush=True)
                results["cells"].append(one_cell(run, to, given.photos, given.bundles))
                write(results)
    if given.latency:
        measure(results["cells"], given.bundles)
        write(results)
    write_page(results)


def write(results: dict[str, Any]) -> None:
    results.update(
        command="python benchmarks/int8.py --photos ../shared/data/flower_photos benchmarks/runs/*",
        date=datetime.date.today().isoformat(),
        processor=processor(),
        versions=all_versions(),
    )
    files.write_json(RESULTS, results)


def one_cell(run: Path, to: str, photos: str, folder: Path) -> dict[str, Any]:
    """Both bundles of a run for a runtime, and what is known of them."""
    begun = time.monotonic()
    found = checkpoint.load(run)
    paths = {precision: folder / f"{run.name}-{to}-{precision}.zip" for precision in ("float32", "int8")}
    for path in paths.values():
        path.unlink(missing_ok=True)
    cell: dict[str, Any] = {"run": run.name, "net": found.name, "image_px": found.preprocess.image_px, "runtime": to}
    plain = compress.export(run, to, photos=photos, out=paths["float32"])
    cell["float32"] = figures(plain.bundle.card)
    try:
        made = compress.export(run, to, "int8", photos=photos, out=paths["int8"], tried=told)
        card, cell["why"] = made.bundle.card, ""
    except ladder.NoRungError as error:
        splits, _ = compress_job.own_splits(run, found, photos)
        source = job.Source.of(run.name, found, splits)
        best = error.best
        exported = job.classifier(source, best.artifact, to, "int8")
        seen = parity.compare(source.reference, exported, splits["test"])
        rungs = [rung.to_dict() for rung in best.rungs]
        card, cell["why"] = job.card(source, best.artifact, to, "int8", exported, seen, rungs, 0, ""), error.message
        # kept beside the others for its latency only
        bundle.write(paths["int8"], bundle_of(source, best.artifact, to, card))
    except HandlensError as error:
        return {**cell, "why": str(error), "met": False, "seconds": time.monotonic() - begun}
    cell["int8"] = figures(card)
    cell["ladder"] = card["ladder"]
    cell["agreement"], cell["drop"] = card["parity"]["agreement"], card["parity"]["drop"]
    cell["allowed"] = max(0.005, 1.96 * card["parity"]["drop_standard_error"])
    cell["met"] = cell["agreement"] >= 0.98 and cell["drop"] <= cell["allowed"]
    if not cell["met"] and not cell["why"]:
        cell["why"] = f"agreement on test {cell['agreement']:.1%}, drop {100 * cell['drop']:.1f} points"
    return {**cell, "seconds": time.monotonic() - begun}


def bundle_of(source: job.Source, artifact: dict[str, bytes], to: str, card: dict[str, Any]) -> bundle.Bundle:
    found = source.checkpoint
    return bundle.Bundle(
        runtime=to,
        precision="int8",
        artifact=artifact,
        net=found.name,
        classes=found.classes,
        preprocess=found.preprocess,
        card=card,
        golden=(),  # it answers some of them otherwise
    )


def told(rung: ladder.Rung) -> None:
    if rung.failed:
        print(f"    {rung.name}: {rung.failed}", flush=True)
        return
    print(
        f"    {rung.name}: {rung.top1:.1%}, drop {100 * rung.drop:.1f}, agreement {rung.agreement:.1%}, "
        f"{rung.size_bytes / 1e6:.2f} MB",
        flush=True,
    )


def figures(card: dict[str, Any]) -> dict[str, Any]:
    exported = card["test"]["exported"]
    return {"top1": exported["top1"], "top1_ci95": exported["top1_ci95"], "size_bytes": card["size_bytes"]}


def measure(cells: list[dict[str, Any]], folder: Path) -> None:
    """Median and spread of one photo, float and INT8 in turn, so that a slow moment of the machine slows both."""
    for cell in cells:
        for threads in THREADS:
            loaded = {}
            for precision in ("float32", "int8"):
                path = folder / f"{cell['run']}-{cell['runtime']}-{precision}.zip"
                if path.exists() and precision in cell:
                    found = bundle.read(path)
                    loaded[precision] = bundles.runtime_of(cell["runtime"]).start(found.artifact, threads)[0]
            px = cell["image_px"]
            photo = np.random.default_rng(0).integers(0, 256, (1, px, px, 3), dtype=np.uint8)
            taken: dict[str, list[float]] = {precision: [] for precision in loaded}
            for _ in range(ROUNDS):
                for precision, infer in loaded.items():
                    for _ in range(5):
                        infer(photo)
                    for _ in range(CALLS):
                        start = time.perf_counter()
                        infer(photo)
                        taken[precision].append(1000 * (time.perf_counter() - start))
            for precision, values in taken.items():
                tenths = statistics.quantiles(values, n=10, method="inclusive")
                cell[precision][f"latency_ms_{threads}"] = {
                    "median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1], "runs": len(values),
                }  # fmt: skip
        print(cell["run"], cell["runtime"], "measured", flush=True)


HEADER = (
    "| network | runtime | float top-1 (95 % interval) | INT8 top-1 (95 % interval) | same answer | MB, float → INT8 "
    "| ms, 1 thread | ms, 2 threads | rung | met |\n|---|---|---|---|--:|---|---|---|---|---|\n"
)


def table(results: dict[str, Any]) -> str:
    rows = []
    for cell in sorted(results["cells"], key=lambda cell: (cell["net"], cell["run"], RUNTIMES.index(cell["runtime"]))):
        if "int8" not in cell:
            rows.append(f"| {cell['net']} | {cell['runtime']} | | | | | | | | no: {cell['why']} |\n")
            continue
        plain, small = cell["float32"], cell["int8"]
        cells = (
            f"{cell['net']}, {cell['image_px']} px",
            cell["runtime"],
            *("{:.1%} ({:.1%} to {:.1%})".format(each["top1"], *each["top1_ci95"]) for each in (plain, small)),
            f"{cell['agreement']:.1%}",
            f"{plain['size_bytes'] / 1e6:.2f} → {small['size_bytes'] / 1e6:.2f} "
            f"({small['size_bytes'] / plain['size_bytes']:.0%})",
            *(latencies(plain, small, threads) for threads in THREADS),
            chosen(cell) if not cell["why"].startswith("no way") else "none",
            "yes" if cell["met"] else f"**no**: {cell['why']}",
        )
        rows.append("| " + " | ".join(cells) + " |\n")
    return HEADER + "".join(rows)


def chosen(cell: dict[str, Any]) -> str:
    """The rung that was kept; in older results, of those of its file's size the most agreeing one."""
    if marked := [rung for rung in cell["ladder"] if rung.get("chosen")]:
        return str(marked[0]["name"])
    same = [rung for rung in cell["ladder"] if rung["size_bytes"] == cell["int8"]["size_bytes"]]
    name: str = max(same, key=lambda rung: rung["agreement"])["name"]
    return name


def latencies(plain: dict[str, Any], small: dict[str, Any], threads: int) -> str:
    key = f"latency_ms_{threads}"
    if key not in plain or key not in small:
        return ""
    a, b = plain[key], small[key]
    slower = " (slower)" if b["median"] > a["median"] else ""
    return (
        f"{a['median']:.2f} ({a['p10']:.2f}–{a['p90']:.2f}) → {b['median']:.2f} ({b['p10']:.2f}–{b['p90']:.2f}){slower}"
    )


def write_page(results: dict[str, Any]) -> None:
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    facts = f"\nMeasured on {results['processor']}, {os.cpu_count()} cores, {results['date']}.\n"
    PAGE.write_text(f"{before}{BEGIN}\n{table(results)}{facts}{END}{after}", "utf-8")
    picture(results["cells"])


def picture(cells: list[dict[str, Any]]) -> None:
    """Size against top-1: an arrow from each float file to its INT8 form."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [cell for cell in cells if "int8" in cell]
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    colours = dict(zip(RUNTIMES, ("C0", "C1", "C2", "C3"), strict=True))
    for cell in shown:
        plain, small = cell["float32"], cell["int8"]
        a = plain["size_bytes"] / 1e6, 100 * plain["top1"]
        b = small["size_bytes"] / 1e6, 100 * small["top1"]
        axes.annotate("", b, a, arrowprops={"arrowstyle": "->", "color": colours[cell["runtime"]], "alpha": 0.8})
        axes.plot(*a, "o", color=colours[cell["runtime"]], markersize=4)
        axes.plot(*b, "s", color=colours[cell["runtime"]], markersize=4, mfc="none" if not cell["met"] else None)
        if cell["runtime"] == "onnx":
            axes.annotate(cell["net"], a, textcoords="offset points", xytext=(4, 5), fontsize=8)
    for name in RUNTIMES:
        if any(cell["runtime"] == name for cell in shown):
            axes.plot([], [], color=colours[name], label=name)
    axes.set(xlabel="size of the file, MB", ylabel="top-1 on the test photos, %", xscale="log")
    axes.set_title("From float32 (dots) to INT8 (squares; open: not met)", fontsize=10)
    axes.legend(frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
