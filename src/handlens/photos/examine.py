"""The doctor's quick look: each photo is decoded once, before anything is built on it."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL

from handlens.errors import HandlensError, PhotoError
from handlens.files import cache_folder, write_json
from handlens.photos.batches import in_threads
from handlens.photos.scan import Photos, listed
from handlens.preprocess import open_photo


@dataclasses.dataclass(frozen=True)
class Findings:
    """What `examine` saw.

    broken:     (path, reason) of each photo that cannot be decoded whole.
    sha256:     SHA-256 of each file's bytes, in hexadecimal, by path; files that cannot be read at all have none.
    pixels:     SHA-256 of each whole photo's size and decoded pixels, by path.
    duplicates: groups of two or more paths with the same decoded pixels, whatever their files' metadata.
    """

    broken: list[tuple[str, str]]
    sha256: dict[str, str]
    pixels: dict[str, str]
    duplicates: list[list[str]]


def examine(photos: Photos, progress: Callable[[int, int], None] | None = None) -> Findings:
    """Decode every photo once, on all cores; broken files are listed, never raised.

    What was seen of whole photos is cached by path, size and modification time, so that a second look at the same
    folder reads only what is new. `progress` is called with photos (done, total).
    """
    cache = cache_folder() / "examined" / f"{hashlib.sha256(str(photos.root.resolve()).encode()).hexdigest()[:32]}.json"
    known = _read_cache(cache)
    stamps = {path: _stamp(photos.root / path) for path in photos.paths}
    new = [path for path in photos.paths if not stamps[path] or known.get(path, [])[:2] != stamps[path]]
    sha256, pixels, reasons = {}, {}, {}
    done = len(photos) - len(new)
    if progress:
        progress(done, len(photos))
    try:
        with contextlib.closing(in_threads(lambda path: _look(photos.root / path), new, ahead=64)) as looks:
            for path, (file_hash, pixel_hash, reason) in zip(new, looks, strict=True):
                if reason:  # not cached: a package installed later may be able to read it
                    known.pop(path, None)
                    reasons[path] = reason
                    if file_hash:
                        sha256[path] = file_hash
                else:
                    known[path] = [*stamps[path], file_hash, pixel_hash]
                done += 1
                if progress:
                    progress(done, len(photos))
    finally:
        if new:
            _write_cache(cache, known)  # after Ctrl-C too: decoding thousands of large photos takes long
    groups = collections.defaultdict(list)
    for path in dict.fromkeys(photos.paths):
        if path not in reasons:
            sha256[path], pixels[path] = known[path][2:]
            groups[pixels[path]].append(path)
    return Findings(
        broken=list(reasons.items()),
        sha256=sha256,
        pixels=pixels,
        duplicates=[group for group in groups.values() if len(group) > 1],
    )


def usable(photos: Photos, findings: Findings) -> Photos:
    """The photos that are not broken. Raises HandlensError when that leaves a class with none."""
    whole = photos.without([path for path, _ in findings.broken])
    counts = zip(photos.classes, photos.counts(), whole.counts(), strict=True)
    if lost := [name for name, before, after in counts if before and not after]:
        path, reason = next(pair for pair in findings.broken if photos.classes[_label(photos, pair[0])] in lost)
        raise HandlensError(
            f"all photos of {listed(lost)} are broken (the first: {path} {reason})", "replace them or remove the class"
        )
    return whole


def _label(photos: Photos, path: str) -> int:
    return int(photos.labels[photos.paths.index(path)])


def _look(path: Path) -> tuple[str, str, str]:
    """(hash of the file, hash of the pixels, why it is broken); what does not apply is empty."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return "", "", f"cannot be read ({error.strerror})"
    file_hash = hashlib.sha256(data).hexdigest()
    try:
        photo = open_photo(data)
    except PhotoError as error:
        return file_hash, "", error.message.removeprefix("the photo ")
    return file_hash, hashlib.sha256(f"{photo.size}".encode() + photo.tobytes()).hexdigest(), ""


def _stamp(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _read_cache(cache: Path) -> dict[str, list[Any]]:
    """Entries [size_bytes, mtime_ns, sha256, pixels] by path; none when there is no cache or it cannot be trusted."""
    try:
        value = json.loads(cache.read_text(encoding="utf-8"))
        if value["pillow"] != PIL.__version__:  # its decoders may give other pixels
            return {}
        return {path: entry for path, entry in value["photos"].items() if [*map(type, entry)] == [int, int, str, str]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _write_cache(cache: Path, known: dict[str, list[Any]]) -> None:
    with contextlib.suppress(HandlensError):  # a full disk costs the next run some time, and this one nothing
        write_json(cache, {"pillow": PIL.__version__, "photos": known})
