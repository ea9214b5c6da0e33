"""`handlens draw-flowers`: the demo's pictures, to look at or to try a command on."""

from __future__ import annotations

from pathlib import Path

import typer


def draw_flowers(
    folder: Path = typer.Argument(..., metavar="FOLDER", help="A new or empty folder for the pictures."),
    photos_per_class: int = typer.Option(400, min=1, help="Pictures of each of the five classes."),
    image_px: int = typer.Option(128, min=32, max=1024, help="Height and width of the pictures."),
    seed: int = typer.Option(0, min=0, help="Another seed draws other pictures."),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Draw flower pictures of five classes by program: daisy, dandelion, roses, sunflowers, tulips.

    The same seed and size draw the same pictures; a larger set begins with the smaller one.

    \b
    Examples:
      handlens draw-flowers flowers
      handlens draw-flowers flowers --photos-per-class 50 --image-px 160 --seed 1
      handlens train flowers --mode scratch --weights none --image-px 96
    """
    from handlens.cli import screen
    from handlens.photos import drawn

    with screen.progress("drawing", photos_per_class * len(drawn.CLASSES)) as update:
        drawn.draw(folder, photos_per_class, image_px, seed, progress=update)
    if json:
        screen.print_json(
            {
                "folder": str(folder),
                "classes": list(drawn.CLASSES),
                "photos_per_class": photos_per_class,
                "num_photos": photos_per_class * len(drawn.CLASSES),
                "image_px": image_px,
                "seed": seed,
            }
        )
    else:
        screen.say(f"{photos_per_class} pictures each of {', '.join(drawn.CLASSES)} in {folder}")
