"""`handlens export`: from a run to a bundle that a phone, a board, a browser or a server runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from handlens.compress.ladder import Rung
    from handlens.export.job import Exported, Progress


def export(
    run: Path = typer.Argument(..., metavar="RUN", help="The folder of a trained run."),
    to: str = typer.Option("onnx", help="onnx, litert, executorch, openvino, coreml or web."),
    int8: bool = typer.Option(False, "--int8", help="8-bit integers: a quarter of the size; the accuracy is checked."),
    weights_only: bool = typer.Option(
        False, "--weights-only", help="With --int8: the weights alone in eight bits, all arithmetic in float."
    ),
    float16: bool = typer.Option(False, "--float16", help="Half the size, nearly the same probabilities."),
    bfloat16: bool = typer.Option(
        False, "--bfloat16", help="With --to openvino: computed in bfloat16, faster where the processor has it."
    ),
    photos: Path | None = typer.Option(
        None,
        help="Labelled photos to calibrate INT8 with, or the run's own at a new place.",
        show_default="the run's own",
    ),
    out: Path | None = typer.Option(
        None, help="The bundle: a folder, or a zip if it ends in .zip.", show_default="RUN-TARGET-PRECISION.zip"
    ),
    max_drop: float | None = typer.Option(
        None,
        min=0.0,
        max=100.0,
        show_default="0.5",
        help="Points of top-1 that INT8 may lose on validation; if not 0, one answer at least.",
    ),
    calibration_photos: int | None = typer.Option(
        None, min=2, show_default="128", help="Photos that INT8 is calibrated with, of all classes."
    ),
    reduce_range: bool = typer.Option(
        False, "--reduce-range", help="7-bit weights in onnxruntime, for x86 processors without VNNI."
    ),
    threads: int = typer.Option(0, min=0, help="Threads of the runtime that checks the file; 0 for all cores."),
    licence: str = typer.Option("", help="What the bundle's card says of the licence."),
    runtime_files: Path | None = typer.Option(
        None, help="A folder with onnxruntime-web's files, for --to web.", show_default="its npm package, by npm"
    ),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Turn a trained network into one file for another runtime, and prove on photos that it answers the same.

    The file takes uint8 RGB photos, resized already, and gives probabilities; classes and pixel contract are inside.
    The test photos of the run, which chose nothing, are answered by both; if the answers differ, nothing is written.
    With --to web it is a folder for any web server, whose page classifies in the browser; RUN may be an ONNX bundle.

    \b
    Examples:
      handlens export runs/flowers --out flowers.zip
      handlens export runs/flowers --to litert --int8 --out flowers-int8.zip
      handlens export runs/flowers --to openvino --float16 --out flowers-openvino
      handlens export runs/flowers --to web --int8 --out site
    """
    from handlens import bundle
    from handlens.cli import screen
    from handlens.errors import HandlensError

    rounded = [name for name, given in (("int8", int8), ("float16", float16), ("bfloat16", bfloat16)) if given]
    if len(rounded) > 1:
        raise HandlensError(f"{' and '.join(f'--{name}' for name in rounded)} are given", "choose one of them")
    if weights_only and not int8:
        raise HandlensError("--weights-only is given without --int8", "it is a way to eight bits: give both")
    if (max_drop is not None or calibration_photos) and not int8:
        raise HandlensError("--max-drop and --calibration-photos are for INT8", "add --int8, or leave them out")
    if runtime_files and to != "web":
        raise HandlensError("--runtime-files is for --to web", "leave it out")
    precision = rounded[0] if rounded else "float32"

    def made_at(target: Path, to: str) -> Exported:
        from handlens import compress
        from handlens.compress.ladder import CALIBRATION_PHOTOS

        with bars() as progress:
            return compress.export(
                run,
                to,
                precision,
                out=target,
                photos=photos,
                max_drop=(0.5 if max_drop is None else max_drop) / 100,
                num_calibration=calibration_photos or CALIBRATION_PHOTOS,
                weights_only=weights_only,
                reduce_range=reduce_range,
                threads=threads,
                licence=licence,
                tried=tell,
                note=screen.note,
                progress=progress,
            )

    if to == "web":
        if bundle.is_bundle(run) and (rounded or photos or licence or reduce_range or threads):
            raise HandlensError(
                f"{run} is a bundle, whose site has its weights and its card as they are",
                "leave out --int8, --float16, --bfloat16, --photos, --licence, --reduce-range and --threads, "
                "or name the run",
            )
        export_site(run, out or Path(f"{run.resolve().name}-site"), made_at, runtime_files, precision, json)
        return
    made = made_at(out or Path(f"{run.resolve().name}-{to}-{precision}.zip"), to)
    if json:
        screen.print_json(made.to_dict())
        return
    show(made)


def export_site(
    source: Path,
    out: Path,
    made_at: Callable[[Path, str], Exported],
    runtime_files: Path | None,
    precision: str,
    as_json: bool,
) -> None:
    """The site of a run, by way of an ONNX bundle that passes the gate, or of such a bundle itself."""
    import tempfile

    from handlens import bundle
    from handlens.cli import screen
    from handlens.cli.check import refuse_wrong
    from handlens.errors import HandlensError, quoted
    from handlens.export import job, web
    from handlens.run import bundles

    if out.suffix.lower() == ".zip":
        folder = quoted(out.with_suffix(""))
        raise HandlensError(f"--to web makes a folder, and {out} names a zip", f"give one: --out {folder}")
    job.check_out(out)
    given = bundle.read(source) if bundle.is_bundle(source) else None
    if given:
        web.check_bundle(given)
        refuse_wrong(source, bundles.check(source))
        precision = given.precision
    runtime = web.runtime_files(runtime_files, precision)  # now: it takes a connection, what comes next takes minutes
    if given:
        site = web.write(out, given, source.name.removesuffix(".zip"), runtime)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            made = made_at(Path(temporary, "bundle"), "onnx")
        if not as_json:
            show(made, of_a_site=True)
        site = web.write(out, made.bundle, source.resolve().name, runtime)
    if as_json:
        screen.print_json(site.to_dict())
        return
    mb = {part: f"{size / 1e6:.2f} MB" for part, size in site.size_bytes.items()}
    screen.say(f"{out}: page {mb['page']}, model {mb['model']}, onnxruntime-web {mb['runtime']}")
    screen.say(
        f"\nnext    python -m http.server 8001 --bind 127.0.0.1 --directory {quoted(out)}\n"
        "        open http://127.0.0.1:8001/"
    )


def tell(rung: Rung) -> None:
    """A line for a rung of the ladder, when it has been tried."""
    from handlens.cli import screen

    if rung.failed:
        screen.note(f"{rung.name}: {rung.failed}")
        return
    within = "95 % interval {:.1%} to {:.1%}; ".format(*rung.top1_ci95) if rung.top1_ci95 else ""
    screen.note(
        f"{rung.name}: validation top-1 on four views {rung.top1:.1%} ({within}{-100 * rung.drop:+z.2f} points, "
        f"allowed: {round(-100 * rung.allowed_drop, 2):zg}), agreement {rung.agreement:.1%} (wanted: "
        f"{100 * rung.wanted_agreement:.3g}%), {rung.size_bytes / 1e6:.2f} MB, {rung.latency_ms:.2f} ms"
        + (f"; in float: {', '.join(rung.kept)}" if rung.kept else "")
    )


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """A bar for each step, one after the other."""
    from handlens.cli import screen

    with contextlib.ExitStack() as stack:
        shown: list[str] = []
        update = None

        def progress(label: str, done: int, total: int) -> None:
            nonlocal update
            if update is None or shown[-1] != label:
                stack.close()
                shown.append(label)
                update = stack.enter_context(screen.progress(label, total))
            update(done, total)

        yield progress


def show(made: Exported, of_a_site: bool = False) -> None:
    """The figures of an export as a table, and where the bundle is unless it is only a site's."""
    from handlens.cli import screen
    from handlens.errors import counted, quoted

    card = made.bundle.card
    if "ladder" in card:
        rows = [
            (rung["name"], "failed", "", "", "", "", "", "")
            if rung["failed"]
            else (
                rung["name"],
                f"{rung['top1']:.1%}",
                "{:.1%} to {:.1%}".format(*rung["top1_ci95"]),
                f"{-100 * rung['drop']:+z.1f}",
                f"{rung['agreement']:.1%}",
                f"{rung['size_bytes'] / 1e6:.2f}",
                f"{rung['latency_ms']:.2f}",
                "chosen" if rung["chosen"] else "",
            )
            for rung in card["ladder"]
        ]
        what = "rung, on four views of each validation photo"
        columns = (what, "top-1", "95 % interval", "points", "agreement", "MB", "ms", "")
        screen.table("", columns, rows)
    if made.parity is None:
        screen.say("not checked on photos: Core ML runs on Apple's systems only; check it there before it is used")
    else:
        network, exported = card["test"]["network"], card["test"]["exported"]
        both = (("the network", network), (f"{made.bundle.runtime} {made.bundle.precision}", exported))
        screen.table(
            counted(card["parity"]["num_photos"], "test photo"),
            ("", "top-1", "95 % interval"),
            [(name, f"{line['top1']:.1%}", "{:.1%} to {:.1%}".format(*line["top1_ci95"])) for name, line in both],
        )
        latency = card["latency"]
        alike = card["parity"].get("unknown_alike")
        screen.say(
            f"same answer on {card['parity']['agreement']:.1%}"
            + ("" if alike is None else f", unknown or not alike on {alike:.1%}")
            + "; probabilities differ by "
            f"{card['parity']['greatest_difference']:.1e} at most; {latency['median_ms']:.2f} ms a photo here"
        )
    if of_a_site:
        return
    share = card["size_bytes"] / card["weights_float32_bytes"]
    screen.say(f"{made.path}: {card['size_bytes'] / 1e6:.2f} MB, {share:.0%} of the float32 weights")
    for drawback in drawbacks(card, made.bundle.runtime):
        screen.say(drawback)
    path = quoted(made.path)
    predict = f"\n        handlens predict {path} PHOTO" if made.parity else ""
    screen.say(f"\nnext    handlens check {path}{predict}")


def drawbacks(card: dict[str, Any], runtime: str) -> list[str]:
    """What an INT8 or bfloat16 file has in which it is no better than its float one: slower here, or larger."""
    if "float32" not in card:
        return []
    from handlens.cost.latency import SLOWER

    plain, found = card["float32"], []
    name, option = ("INT8", "--int8") if card["precision"] == "int8" else ("bfloat16", "--bfloat16")
    if card["latency"]["median_ms"] > SLOWER * plain["latency"]["median_ms"]:
        found.append(
            f"slower than float: {card['latency']['median_ms']:.2f} ms a photo in {name}, "
            f"{plain['latency']['median_ms']:.2f} ms in float32, on {runtime} here; "
            f"for speed leave out {option} or try another --to"
        )
    if card["precision"] == "int8" and card["size_bytes"] > plain["size_bytes"]:
        found.append(
            f"larger than float: {card['size_bytes'] / 1e6:.2f} MB in INT8, {plain['size_bytes'] / 1e6:.2f} MB in "
            "float32, as what eight bits add weighs more than they save in so small a network; leave out --int8"
        )
    return found
