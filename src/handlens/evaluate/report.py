"""The report: one HTML file that needs nothing else, on a phone or a desk, in light or dark."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlens import files
from handlens.errors import PhotoError, counted, missing_extra
from handlens.evaluate import calibration, figures
from handlens.evaluate.metrics import Scores
from handlens.evaluate.nearest import Nearest, words
from handlens.evaluate.sections import Section
from handlens.explain.overlay import over
from handlens.photos import Photos
from handlens.preprocess import open_photo

THUMBNAIL_PX = 176
MOST_MISTAKES = 12
NEIGHBOUR_PX = 96
Saliency = Callable[[np.ndarray, int], np.ndarray]


def write(
    path: str | os.PathLike[str],
    scores: Scores,
    photos: Photos,
    *,
    title: str,
    split: str = "",
    facts: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
    saliency: Saliency | None = None,
    nearest: Nearest | None = None,
    sections: Sequence[Section] = (),
) -> None:
    """Write the report of `scores` as a self-contained HTML file, atomically.

    photos: those that were scored; their files give the thumbnails, made from pixels alone, so that neither GPS nor
    any other metadata gets in. split: a sentence on how these photos were chosen. facts: a table each, by heading,
    such as {"Recipe": {...}, "Versions": {...}}. pictures: PNG bytes by caption, such as the training curves.
    saliency: (upright photo, uint8 RGB (H, W, 3); class) -> a map (H, W) in [0, 1] of what speaks for the class, NaN
    where the network does not look; with it each of the worst mistakes is shown with the map for its wrong answer.
    nearest: the training photos, of which those most like each of these mistakes are shown.
    sections: what else was found, a table each.
    """
    wrong = scores.mistakes()
    mistakes = [_mistake(scores, photos, int(index), saliency) for index in wrong[:MOST_MISTAKES]]
    if nearest:
        _add_nearest(mistakes, nearest, photos)
    render(
        path,
        "report.html",
        title=title,
        scores=scores,
        split=split,
        confusion=_data_uri(figures.confusion(scores.confusion, scores.classes), "png"),
        mistakes=mistakes,
        saliency=any(mistake["looks_at"] for mistake in mistakes),
        nearest=any(mistake["nearest"] for mistake in mistakes),
        num_mistakes=len(wrong),
        pictures={caption: _data_uri(png, "png") for caption, png in (pictures or {}).items()},
        facts=facts or {},
        sections=sections,
        confusions=scores.confusions(),
        reliability=_data_uri(_reliability(scores), "png"),
    )


def render(path: str | os.PathLike[str], template: str, **values: Any) -> None:
    """Fill in a template of this room and write it as `path`, atomically."""
    try:
        import jinja2
    except ImportError:
        raise missing_extra("evaluate", "jinja2") from None
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": _percent, "number": _number, "interval": _interval}
    text = resources.files("handlens.evaluate").joinpath(template).read_text(encoding="utf-8")
    html = environment.from_string(text).render(counted=counted, **values)
    with files.atomic(path, "w") as file:
        # a file name that is not text holds surrogates, which UTF-8 refuses
        file.write(html.encode("utf-8", "replace").decode("utf-8"))


def _reliability(scores: Scores) -> bytes:
    found = scores.calibration
    sides = {"as it is": found} if "before" not in found else {"before": found["before"], "calibrated": found}
    return figures.reliability(
        {title: ([calibration.Bin(**line) for line in side["bins"]], side["ece"]) for title, side in sides.items()}
    )


def _mistake(scores: Scores, photos: Photos, index: int, saliency: Saliency | None) -> dict[str, Any]:
    guess = int(scores.predicted[index])
    path = photos.root / scores.paths[index]
    return {
        "photo": scores.paths[index],
        "picture": thumbnail(path),
        "looks_at": _looks_at(path, guess, saliency) if saliency else "",
        "guess": scores.classes[guess],
        "truth": scores.classes[int(scores.labels[index])],
        "confidence": float(scores.confidence[index]),
        "nearest": [],
        "nearest_words": "",
    }


def _add_nearest(mistakes: list[dict[str, Any]], nearest: Nearest, photos: Photos) -> None:
    """Give each mistake whose photo can be read the thumbnails of the training photos that are most like it."""
    there = [mistake for mistake in mistakes if mistake["picture"]]
    paths = tuple(mistake["photo"] for mistake in there)
    seen = Photos(photos.root, paths, np.zeros(len(paths), np.int64), photos.classes)
    for mistake, indices in zip(there, nearest.of(seen), strict=True):
        names = [nearest.photos.classes[nearest.photos.labels[index]] for index in indices]
        pictures = [thumbnail(nearest.photos.path(index), NEIGHBOUR_PX) for index in indices]
        mistake["nearest"] = [{"name": n, "picture": p} for n, p in zip(names, pictures, strict=True)]
        mistake["nearest_words"] = words(names, mistake["guess"], mistake["truth"])


def _looks_at(path: Path, class_index: int, saliency: Saliency) -> str:
    """The thumbnail with the map of one class laid over; "" if the photo cannot be read."""
    try:
        photo = open_photo(path)
    except PhotoError:
        return ""
    heat = saliency(np.array(photo), class_index)
    photo.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    return _jpeg(over(photo, heat))


def thumbnail(path: Path, px: int = THUMBNAIL_PX) -> str:
    """A photo as a small JPEG in a data URI, with its pixels and nothing else of the file; "" if it cannot be read."""
    try:
        photo = open_photo(path, at_least_px=px)
    except PhotoError:
        return ""
    photo.thumbnail((px, px))
    return _jpeg(np.array(photo))


def _jpeg(pixels: np.ndarray) -> str:
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=80)  # a new image: no EXIF, comment or profile
    return _data_uri(jpeg.getvalue(), "jpeg")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _interval(ends: Sequence[float] | None) -> str:
    return "–" if ends is None else f"{_percent(ends[0])} to {_percent(ends[1])}"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_number, value)) if isinstance(value, (list, tuple)) else str(value)
