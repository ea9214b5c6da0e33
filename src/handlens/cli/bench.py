"""`handlens bench`: how fast bundles are, here or on a phone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import typer


def bench(
    bundle: list[Path] = typer.Argument(..., metavar="BUNDLE", help="Bundles, or runs (on torch) beside them."),
    threads: list[int] = typer.Option([1, 2], min=1, help="Threads of the processor; may be given several times."),
    batch: int | None = typer.Option(None, min=1, show_default="32", help="Photos at once for photos a second."),
    runs: int = typer.Option(100, min=3, help="Calls that are timed."),
    phone: bool = typer.Option(False, "--phone", help="On an Android phone over adb, in place of this machine."),
    tool: Path = typer.Option(Path("benchmark_model"), help="--phone: LiteRT's native benchmark tool for Android."),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Measure the latency of one photo, and photos a second, by threads.

    From decoded pixels to probabilities; decoding and resizing are not in it. The median of the calls, and between what
    a tenth of them are below and above. Bundles are measured in turn, so that a machine that slows down slows all.

    \b
    Examples:
      handlens bench flowers.zip flowers-int8.zip
      handlens bench flowers.zip --threads 1 --threads 4 --json
      handlens bench flowers-litert.zip --phone --tool benchmark_model
    """
    from handlens.cli import screen
    from handlens.errors import HandlensError

    if phone and batch is not None:
        raise HandlensError("--batch is for this machine, and --phone measures one photo", "leave one of them out")
    rows = _on_phone(bundle, tool, threads, runs) if phone else _here(bundle, threads, batch or 32, runs)
    if json:
        screen.print_json(rows)
    elif phone:
        columns = ("bundle", "phone", "threads", "mean ms", "first ms")
        screen.table("", columns, [(r["bundle"], r["device"], r["threads"], r["mean_ms"], r["first_ms"]) for r in rows])
    else:
        screen.table(
            "",
            ("bundle", "runtime", "precision", "threads", "ms a photo", "10 % to 90 %", "photos/s"),
            [
                (
                    r["bundle"],
                    r["runtime"],
                    r["precision"],
                    r["threads"],
                    f"{r['median_ms']:.2f}",
                    f"{r['p10_ms']:.2f} to {r['p90_ms']:.2f}",
                    f"{r['photos_per_s']:.0f}",
                )
                for r in rows
            ],
        )
        _compare(rows)


def _here(paths: list[Path], threads: list[int], batch: int, runs: int) -> list[dict[str, Any]]:
    import numpy as np

    from handlens import run
    from handlens.cli import screen
    from handlens.cost import latency

    for path in paths:  # what cannot be measured is told before anything is
        run.load(path, threads[0], "cpu")
    rows: list[dict[str, Any]] = []
    with screen.progress("measuring", len(paths) * len(threads)) as update:
        for count in threads:
            for path in paths:
                classifier = run.load(path, count, "cpu")
                px = classifier.preprocess.image_px
                photos = np.random.default_rng(0).integers(0, 256, (batch, px, px, 3), dtype=np.uint8)
                one = latency.measure(functools.partial(classifier.infer, photos[:1]), count, runs)
                many = latency.measure(functools.partial(classifier.infer, photos), count, max(3, runs // 10))
                rows.append(
                    {
                        "bundle": str(path),
                        "runtime": classifier.runtime,
                        "precision": classifier.precision,
                        **one._asdict(),
                        "batch": batch,
                        "photos_per_s": 1000 * batch / many.median_ms,
                    }
                )
                update(len(rows), len(paths) * len(threads))
    return rows


def _on_phone(paths: list[Path], tool: Path, threads: list[int], runs: int) -> list[dict[str, Any]]:
    from handlens import bundle
    from handlens.run import android

    return [
        {"bundle": str(path), **line._asdict()}
        for path in paths
        for line in android.measure(bundle.read(path), tool, threads, runs)
    ]


def _compare(rows: list[dict[str, Any]]) -> None:
    """Say it when an INT8 or bfloat16 file is slower than a float one of the same runtime and threads."""
    from handlens.cli import screen
    from handlens.cost.latency import SLOWER
    from handlens.errors import counted

    for row in rows:
        for other in rows:
            same = all(row[key] == other[key] for key in ("runtime", "threads"))
            rounded = row["precision"] in ("int8", "bfloat16") and other["precision"] == "float32"
            if same and rounded and row["median_ms"] > SLOWER * other["median_ms"]:
                names = f"{row['bundle']} ({row['precision']}) is slower here than {other['bundle']} (float32)"
                screen.say(f"{names} with {counted(row['threads'], 'thread')}")
