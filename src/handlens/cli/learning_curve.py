"""`handlens learning-curve`: what more photos would bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

MODES = ("head", "last", "full")


def learning_curve(
    photos: str = typer.Argument(
        ..., metavar="PHOTOS", help="A folder with a subfolder a class, a CSV of path,label, or a published set."
    ),
    net: str = typer.Option("mobilenet_v3_small", help="Which network: `handlens nets` lists them."),
    weights: str = typer.Option("imagenet", help="imagenet, or a .pth or .safetensors file."),
    mode: list[str] = typer.Option(["head"], help="head, last or full; may be given several times."),
    per_class: str = typer.Option("5,10,20,50", help="Numbers of training photos a class; all of them come last."),
    seeds: int = typer.Option(5, min=1, help="Draws of photos, each with its own first weights."),
    split_seed: int = typer.Option(0, min=0, help="Cuts the test photos, as `handlens train --seed` does."),
    out: Path = typer.Option(
        Path("learning-curve"),
        help="Folder for figure.png, numbers.json and answers.json, by which the same command goes on.",
    ),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Train on few photos a class, then on more: the curve says what still more would bring.

    In mode head the network stays frozen, so that its features are computed once and each training takes seconds; in
    last and full each takes as long as `handlens train` would. All are judged on the same test photos, beside a plain
    linear probe. After each training answers.json, in --out, keeps which test photos it was right about (1 or 0 each):
    stopped, the same command goes on with those that are missing. It can be removed when the curve is done.

    \b
    Examples:
      handlens learning-curve photos
      handlens learning-curve photos --mode head --mode last --mode full
      handlens learning-curve photos --net mobilenet_v2 --per-class 2,4,8 --seeds 3 --out curve --json
    """
    from handlens import files
    from handlens.cli import screen
    from handlens.errors import HandlensError, not_one_of

    try:
        sizes = sorted({int(size) for size in per_class.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1:
        raise HandlensError(f"--per-class is {per_class!r}, expected numbers from 1 on with commas", "such as 5,10,20")
    modes = list(dict.fromkeys(mode))
    if unknown := [name for name in modes if name not in MODES]:
        raise not_one_of("--mode", unknown[0], MODES)
    if weights == "none":
        raise HandlensError("a learning curve begins from weights, and --weights is none", "give a weight file")
    from handlens.experiments import finite
    from handlens.experiments import learning_curve as room
    from handlens.photos.scan import check_no_photos

    files.check_place(out / "answers.json")
    check_no_photos(out)
    with screen.progress("features") as update:
        embedded = room.embed(photos, net, weights, split_seed, update, out / "answers.json")
    for note in embedded.data.notes:
        screen.note(note)
    files.make_own_folder(out)
    with screen.progress("training") as update:
        result = room.measure(embedded, sizes, seeds, update, modes, out / "answers.json")
    for size in result.numbers["sizes_left_out"]:
        screen.note(f"left out: {size} photos a class, which half of the classes or more do not have in training")
    facts: dict[str, Any] = finite(
        {"finding": result.finding, "data": result.data, "tables": result.tables, "numbers": result.numbers}
    )
    files.write_json(out / "numbers.json", facts)
    with files.atomic(out / "figure.png") as file:
        file.write(result.png())
    if json:
        screen.print_json(facts | {"out": out})
        return
    rows = [
        (
            f"{row['photos_per_class']:.0f}",
            *(_mean(row[f"{name}_top1"], row[f"{name}_sd"]) for name in (*modes, "probe")),
            *(
                "{:+z.1f} ({:+z.1f} to {:+z.1f})".format(*(100 * value for value in (row[key], *row[f"{key}_ci95"])))
                for key in (f"{name}_less_probe" for name in modes)
            ),
        )
        for row in result.tables["learning curve"]
    ]
    header = ("photos a class", *modes, "linear probe", *(f"{name} less probe, points" for name in modes))
    screen.table("top-1", header, rows)
    screen.say(f"\n{result.finding}\n\n{out / 'figure.png'}, {out / 'numbers.json'}")


def _mean(mean: float, deviation: float | None) -> str:
    return f"{mean:.1%}" if deviation is None else f"{mean:.1%} ± {100 * deviation:.1f}"
