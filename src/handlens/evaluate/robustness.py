"""Accuracy on photos as phones make them: blurred, dark, noisy, compressed, turned, off-centre, and of other shapes."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFilter

from handlens.evaluate.metrics import Scores
from handlens.photos import Photos, examine, in_threads
from handlens.preprocess import Preprocess, open_photo

Change = Callable[[Image.Image, np.random.Generator], Image.Image]
SHAPES = {"square": (1, 1), "portrait 3:4": (3, 4), "4:3": (4, 3), "16:9": (16, 9)}  # width to height
RULES: tuple[Literal["crop", "letterbox", "squash"], ...] = ("crop", "letterbox", "squash")


def blur(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Out of focus: a Gaussian of 1 % of the shorter side."""
    return photo.filter(ImageFilter.GaussianBlur(0.01 * min(photo.size)))


def noise(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A sensor in poor light: normal noise of 25 of 255 levels on each pixel and channel."""
    pixels = np.asarray(photo) + rng.normal(0, 25, (photo.height, photo.width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def dark(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Under-exposed by two stops: a quarter of the light, in linear light (a gamma of 2.2)."""
    return photo.point([round(level * 0.25 ** (1 / 2.2)) for level in range(256)] * 3)


def jpeg_30(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Sent by a messenger: JPEG of quality 30."""
    return _by_way_of(photo, quality=30)


def turned(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Stored on its side, with EXIF saying so, as phones do; read as every photo is."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen, turn it clockwise by 90 degrees
    return _by_way_of(photo.transpose(Image.Transpose.ROTATE_90), quality=95, subsampling=0, exif=exif)


def off_centre(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Framed badly: a window of 70 % of both sides, anywhere in the photo."""
    width, height = (max(1, round(0.7 * side)) for side in photo.size)
    left, top = int(rng.integers(photo.width - width + 1)), int(rng.integers(photo.height - height + 1))
    return photo.crop((left, top, left + width, top + height))


HARMS: dict[str, Change] = {
    "as they are": lambda photo, rng: photo,
    "blurred": blur,
    "noisy": noise,
    "dark": dark,
    "JPEG 30": jpeg_30,
    "turned, by EXIF": turned,
    "off-centre crop": off_centre,
}


def measure(
    predict: Callable[[np.ndarray], np.ndarray],
    photos: Photos,
    preprocess: Preprocess,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score readable photos under each of `HARMS`, and cut to each of `SHAPES` under each resize rule.

    predict: as in `evaluate.score`, probabilities only. Random ones depend on a photo's number alone. JSON-ready:
    "harmed" and "shapes" (by rule) with top1 and top1_ci95 each; "resize", the rule of the contract.
    """
    passes = len(HARMS) + len(SHAPES) * len(RULES)
    scenes = examine(photos).scenes(photos.paths)
    finished = 0

    def top1(change: Change, contract: Preprocess) -> dict[str, Any]:
        nonlocal finished
        rows = []
        for images in _batches(photos, change, contract, batch_size):
            rows.append(predict(images))
            if progress:
                progress(finished * len(photos) + sum(map(len, rows)), passes * len(photos))
        finished += 1
        scores = Scores(
            probabilities=np.concatenate(rows), labels=photos.labels, classes=photos.classes, paths=photos.paths,
            scenes=scenes,
        )  # fmt: skip
        return {"top1": scores.top1, "top1_ci95": list(scores.top1_ci95)}

    harmed = {name: top1(change, preprocess) for name, change in HARMS.items()}
    shapes = {
        name: {
            rule: top1(_to_shape(*sides), dataclasses.replace(preprocess, resize=rule, resize_px=_px(preprocess)))
            for rule in RULES
        }
        for name, sides in SHAPES.items()
    }
    return {"num_photos": len(photos), "resize": preprocess.resize, "harmed": harmed, "shapes": shapes}


def _px(preprocess: Preprocess) -> int:
    """`resize_px` for all rules: only "crop" reads it, and it must be at least the image's."""
    return max(preprocess.resize_px, preprocess.image_px)


def _to_shape(across: int, down: int) -> Change:
    """Cuts the largest window of that shape from the middle of a photo."""

    def cut(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
        scale = min(photo.width / across, photo.height / down)
        width, height = max(1, round(across * scale)), max(1, round(down * scale))
        left, top = (photo.width - width) // 2, (photo.height - height) // 2
        return photo.crop((left, top, left + width, top + height))

    return cut


def _batches(photos: Photos, change: Change, contract: Preprocess, batch_size: int) -> Iterator[np.ndarray]:
    def load(index: int) -> np.ndarray:
        photo = open_photo(photos.path(index))
        return contract.fit(change(photo, np.random.default_rng([index, 6])))

    decoded = in_threads(load, range(len(photos)), ahead=2 * batch_size)
    for start in range(0, len(photos), batch_size):
        yield np.stack([next(decoded) for _ in range(min(batch_size, len(photos) - start))])


def _by_way_of(photo: Image.Image, **options: Any) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "JPEG", **options)
    return open_photo(file.getvalue())
