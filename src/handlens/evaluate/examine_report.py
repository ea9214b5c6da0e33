"""What was found in photos, as one HTML file that needs nothing else, with thumbnails of pixels alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from handlens.evaluate.report import render, thumbnail
from handlens.photos import Photos
from handlens.photos.diagnose import BROKEN, KINDS, Finding

MOST_SHOWN = 24  # findings of a kind that are shown; the list in JSON has all
MOST_IN_GROUP = 4


def write(
    path: str | os.PathLike[str],
    photos: Photos,
    found: Sequence[Finding],
    statistics: Mapping[str, str],
    left_out: Mapping[str, str],
) -> None:
    """Write the report of `diagnose`'s findings, atomically; left_out: what --fix would leave out, with reasons."""
    counts = photos.counts().tolist()
    render(
        path,
        "examine_report.html",
        title=f"The photos of {photos.root.resolve().name}",
        num_photos=len(photos),
        kinds=[_kind(photos, kind, [one for one in found if one.kind == kind]) for kind in KINDS],
        classes=list(zip(photos.classes, counts, strict=True)),
        most=max(counts),
        statistics=statistics,
        num_left_out=len(left_out),
    )


def _kind(photos: Photos, kind: str, found: Sequence[Finding]) -> dict[str, Any]:
    shown = [
        {
            "detail": one.detail,
            "photos": [
                {"path": path, "picture": "" if kind in BROKEN else thumbnail(photos.root / path)}
                for path in one.photos[:MOST_IN_GROUP]
            ],
            "more": max(0, len(one.photos) - MOST_IN_GROUP),
        }
        for one in found[:MOST_SHOWN]
    ]
    return {"name": kind, "meaning": KINDS[kind], "number": len(found), "shown": shown}
