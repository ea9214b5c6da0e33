"""Draw the README's picture, docs/images/flowers.png, a row a class: python docs/sheet.py"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from handlens.photos import drawn

COLUMNS, PX, GAP = 8, 96, 4


def sheet(folder: Path) -> Image.Image:
    """The first pictures of each class in a drawn set, side by side."""
    size = ((PX + GAP) * COLUMNS - GAP, (PX + GAP) * len(drawn.CLASSES) - GAP)
    picture = Image.new("RGB", size, "white")
    for row, name in enumerate(drawn.CLASSES):
        for column, path in enumerate(sorted((folder / name).iterdir())[:COLUMNS]):
            thumbnail = Image.open(path).resize((PX, PX), Image.Resampling.LANCZOS)
            picture.paste(thumbnail, ((PX + GAP) * column, (PX + GAP) * row))
    return picture


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        folder = drawn.draw(Path(temporary) / "flowers", photos_per_class=COLUMNS)
        picture = sheet(folder)
        picture = picture.quantize(palette=picture.quantize(256))  # a third of the bytes
        picture.save(Path(__file__).parent / "images" / "flowers.png", optimize=True)
