"""What was seen of photos, in words: a list of findings, each with a kind, the photos and a detail."""

from __future__ import annotations

import collections
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from handlens.files import read_json
from handlens.photos import quality
from handlens.photos.examine import Facts, Findings
from handlens.photos.scan import SPLITS, Photos
from handlens.preprocess import NEEDS_PACKAGE

KINDS = {  # in the order in which they are told
    "unreadable": "cannot be decoded",
    "truncated": "the end of the file is missing",
    "zero-byte": "the file is empty",
    "needs-package": "HEIC, and the package that reads it is not installed",
    "too-large": "more than 50 million pixels or 50 MB",
    "label-conflict": "the same photo in two classes",
    "leak": "the same photo in two of train, validation and test",
    "exact-duplicates": "the same pixels",
    "near-duplicates": "resized, recompressed, mirrored, cropped a little, or brighter or darker",
    "series": "many photos of one scene, such as a video: training keeps them on one side",
    "alike-by-nature": "as alike as copies are, but so are others of their class: taken for its look, not for copies",
    "suspected-label": "may be another class than it is said to be",
    "empty-class": "a class without photos to train on",
    "few-photos": "a class with fewer than 20 photos",
    "imbalance": "classes that differ more than fivefold in photos",
    "similar-names": "class names that differ only by case, spacing or hyphens",
    "wrong-extension": "the name says another format than the file has",
    "animated": "only the first picture is used",
    "rotated": "turned by its EXIF orientation, which not every program obeys",
    "grey": "no colour, where most photos have some",
    "alpha": "has an alpha channel, where most photos have none; what is transparent becomes white",
    "odd-size": "much smaller or larger than most",
    "odd-shape": "much longer and narrower than most",
    "blurred": "no sharp edge anywhere",
    "dark": "hardly any light",
    "bright": "hardly any shade",
    "nearly-empty": "hardly any contrast",
}
BROKEN = ("unreadable", "truncated", "zero-byte")
FEW = 20
_IMBALANCE = 5.0
_MOST_PIXELS, _MOST_BYTES = 50_000_000, 50_000_000
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif"),
}


class Finding(NamedTuple):
    """kind: one of KINDS. photos: their paths, relative to the photos' root; none where a class is meant."""

    kind: str
    photos: tuple[str, ...]
    detail: str


def suffix_of(facts: Facts) -> str:
    """The usual ending of a file of this format, such as ".jpg"."""
    return _SUFFIXES[facts.format][0]


def diagnose(
    photos: Photos,
    findings: Findings,
    near: Iterable[Sequence[str]] = (),
    splits: Mapping[str, str] | None = None,
) -> list[Finding]:
    """All that is to be said of photos, in the order of KINDS. Duplicates in two classes are label conflicts only.

    findings: of `examine` with `with_quality`: without it nothing is said of grey, nearly empty, dark, bright and
    blurred photos. near: `findings.near_duplicates()`. splits: the side of each photo by path, by default the photos'
    own.
    """
    label = dict(zip(photos.paths, (photos.classes[k] for k in photos.labels), strict=True))
    if splits is None:
        splits = dict(zip(photos.paths, photos.splits or (), strict=False))
    found = [_broken(photos.root, path, reason) for path, reason in findings.broken]
    alike = []
    for group in near:
        copies = findings.copies(group)
        alike += [tuple(some) for some in copies]
        if copies != [[*group]]:
            found.append(Finding("series", tuple(group), _places(group, label, splits)))
            if len({splits[path] for path in group if path in splits}) > 1:
                found.append(Finding("leak", tuple(group), f"one scene: {_places(group, label, splits)}"))
    if usual := findings.alike_by_nature():
        found.append(Finding("alike-by-nature", (), f"{len(usual)} of {len(photos)} photos"))
    among_alike = {path for group in alike for path in group}
    groups = [("exact-duplicates", "the same pixels", tuple(group)) for group in findings.duplicates]
    groups += [("near-duplicates", "nearly the same", group) for group in alike]
    for kind, how, group in groups:
        names, sides = ({of[path]: 0 for path in group if path in of} for of in (label, splits))
        if len(names) == 1:
            found.append(Finding(kind, group, _places(group, label, splits)))
        if kind == "exact-duplicates" and group[0] in among_alike:  # the rest is said of the wider group
            continue
        if len(names) > 1:
            found.append(Finding("label-conflict", group, f"{how}: {', '.join(names)}"))
        if len(sides) > 1:
            found.append(Finding("leak", group, f"{how}: {', '.join(name for name in SPLITS if name in sides)}"))
    lost = [one.photos[0] for one in found if one.kind in BROKEN]
    found += _classes(photos.without(lost))
    found += _single(photos.root, findings.facts)
    order = list(KINDS)
    return sorted(found, key=lambda finding: order.index(finding.kind))


def sides(split_file: str | os.PathLike[str], sha256: Mapping[str, str]) -> dict[str, str]:
    """The side of each photo that a run's split.json names, found by path and content, else by content alone."""
    stored = read_json(split_file)
    stored = stored if isinstance(stored, dict) else {}
    named = {(path, content): name for name in SPLITS for path, content in stored.get(name, {}).items()}
    by_content = {content: name for (_, content), name in named.items()}
    of = {path: named.get((path, content), by_content.get(content)) for path, content in sha256.items()}
    return {path: name for path, name in of.items() if name}


def _places(group: Sequence[str], label: Mapping[str, str], splits: Mapping[str, str]) -> str:
    counts = collections.Counter(" ".join(filter(None, (splits.get(path), label[path]))) for path in group)
    return ", ".join(f"{number} in {place}" for place, number in counts.items())


def _broken(root: Path, path: str, reason: str) -> Finding:
    try:
        size = (root / path).stat().st_size
        data = b"" if not size else _ends(root / path, size)
    except OSError:
        return Finding("unreadable", (path,), reason)
    if not size:
        return Finding("zero-byte", (path,), "is empty")
    if NEEDS_PACKAGE in reason:
        return Finding("needs-package", (path,), reason)
    if "too many pixels" in reason:
        return Finding("too-large", (path,), reason)
    return Finding("truncated" if "truncated" in reason or _is_cut(data, size) else "unreadable", (path,), reason)


def _ends(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        start = file.read(64)
        file.seek(max(0, size - 64))
        return start.ljust(64, b"\0") + file.read(64)


def _is_cut(ends: bytes, size: int) -> bool:
    """Whether a broken file of a known format lacks its end; `ends`: its first and last 64 bytes."""
    start, end = ends[:64], ends[64:]
    if start.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" not in end
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" not in end
    if start.startswith(b"RIFF"):
        return size < 8 + int.from_bytes(start[4:8], "little")
    if start.startswith(b"BM"):
        return size < int.from_bytes(start[2:6], "little")
    return start.startswith(b"GIF8") and not end.rstrip(b"\0").endswith(b";")


def _classes(photos: Photos) -> list[Finding]:
    counts = dict(zip(photos.classes, photos.counts().tolist(), strict=True))
    found = [Finding("empty-class", (), detail) for detail in _empty(photos)]
    some = {name: count for name, count in counts.items() if count}
    found += [Finding("few-photos", (), f"{name}: {count}") for name, count in some.items() if count < FEW]
    most, least = max(counts, key=counts.__getitem__), min(some or counts, key=counts.__getitem__)
    if counts[most] > _IMBALANCE * counts[least]:
        found.append(Finding("imbalance", (), f"{counts[most]} of {most}, {counts[least]} of {least}"))
    alike = collections.defaultdict(list)
    for name in counts:
        letters = unicodedata.normalize("NFKC", name).casefold()
        alike["".join(letter for letter in letters if not letter.isspace() and letter not in "_-")].append(name)
    found += [Finding("similar-names", (), ", ".join(map(repr, names))) for names in alike.values() if len(names) > 1]
    return found


def _empty(photos: Photos) -> Iterator[str]:
    """What is said of each class without photos or, where others have some in train, without any there."""
    sides = zip(photos.labels, photos.splits or (), strict=False)
    learned = {photos.classes[k] for k, side in sides if side == "train"}
    for name, count in zip(photos.classes, photos.counts().tolist(), strict=True):
        if not count:
            yield f"{name}: no photo"
        elif learned and name not in learned:
            yield f"{name}: no photo in train, {count} elsewhere"


def _single(root: Path, facts: Mapping[str, Facts]) -> list[Finding]:
    """What is said of photos one by one."""
    if not facts:
        return []
    found: list[Finding] = []
    pixels = np.array([one.width * one.height for one in facts.values()], np.float64)
    length = np.array([max(one.width, one.height) / min(one.width, one.height) for one in facts.values()])
    usual_px, usual_length = np.median(np.sqrt(pixels)), np.median(length)
    colourless = sum(one.quality.grey for one in facts.values() if one.quality) < len(facts) / 2
    opaque = sum(not one.alpha for one in facts.values()) > len(facts) / 2
    for (path, one), area, long in zip(facts.items(), pixels, length, strict=True):

        def add(kind: str, is_so: object, detail: str, path: str = path) -> None:
            if is_so:
                found.append(Finding(kind, (path,), detail))

        size = f"{one.width} x {one.height} px"
        size_bytes = (root / path).stat().st_size if (root / path).exists() else 0
        add("too-large", area > _MOST_PIXELS or size_bytes > _MOST_BYTES, f"{size}, {size_bytes / 1e6:.0f} MB")
        wrong = not path.lower().endswith(_SUFFIXES.get(one.format, ("",)))
        add("wrong-extension", wrong, f"is {one.format}")
        add("animated", one.animated, f"an animated {one.format}")
        add("rotated", one.orientation > 1, f"EXIF orientation {one.orientation}")
        add("grey", one.quality and one.quality.grey and colourless, "no colour")
        add("alpha", one.alpha and opaque, f"{one.format} with alpha")
        side = np.sqrt(area)
        add("odd-size", side < usual_px / 4 or side > usual_px * 4, f"{size}, most are about {usual_px:.0f} px a side")
        add("odd-shape", long > max(2.5, 2 * usual_length), f"{size}")
        if not (seen := one.quality):
            continue
        empty = seen.contrast < quality.EMPTY
        add("nearly-empty", empty, f"contrast {seen.contrast:.1f} grey levels")
        add("dark", seen.dark < quality.DARK, f"95 % of it below grey level {seen.dark} of 255")
        add("bright", seen.bright > quality.BRIGHT, f"95 % of it above grey level {seen.bright} of 255")
        add("blurred", seen.sharpness < quality.BLURRED and not empty, f"sharpness {seen.sharpness:.2f}")
    return found


def statistics(findings: Findings) -> dict[str, str]:
    """Sizes and shapes of the whole photos, as least, median and most."""
    if not findings.facts:
        return {}
    sides = np.array([(one.width, one.height) for one in findings.facts.values()])
    figures = {
        "shorter side, px": sides.min(1),
        "longer side, px": sides.max(1),
        "longer for shorter side": (sides.max(1) / sides.min(1)).round(2),
    }
    return {name: f"{v.min():g} to {v.max():g}, median {np.median(v):g}" for name, v in figures.items()}
