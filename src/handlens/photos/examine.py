"""The doctor's quick look: each photo is decoded once, before anything is built on it."""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image

from handlens.errors import HandlensError, PhotoError
from handlens.files import atomic, cache_folder
from handlens.photos import near, quality
from handlens.photos.batches import in_threads
from handlens.photos.quality import Quality
from handlens.photos.scan import Photos, listed
from handlens.preprocess import NEEDS_PACKAGE, open_photo

_FOUND: dict[str, near.Alike] = {}  # by a hash of what was compared: folds and repeats ask for the same again
# Of what is kept: since 3 floats up to 1 are not black, since 4 quality may be left out, since 5 XMP turns no photo.
_VERSION = 5


class Facts(NamedTuple):
    """What is kept of a whole photo.

    width, height: of the upright photo. format: Pillow's name of the file's, such as "JPEG". orientation: EXIF's, 1 to
    8, 0 where there is none. animated: more than one picture. alpha: has an alpha channel. thumbnail: 32 x 32 grey
    pixels, see `near`. quality: what `quality.measure` says, where it was asked for by now.
    """

    width: int
    height: int
    format: str
    orientation: int
    animated: bool
    alpha: bool
    thumbnail: bytes
    quality: Quality | None


@dataclasses.dataclass(frozen=True)
class Findings:
    """What `examine` saw.

    broken:     (path, reason) of each photo that cannot be decoded whole.
    sha256:     SHA-256 of each file's bytes, in hexadecimal, by path; files that cannot be read at all have none.
    pixels:     SHA-256 of each whole photo's size and decoded pixels, by path.
    duplicates: groups of two or more paths with the same decoded pixels, whatever their files' metadata.
    facts:      what else was seen of each whole photo, by path.
    class_of:   the name of each photo's class, by path: those of one class may be alike by nature.
    """

    broken: list[tuple[str, str]]
    sha256: dict[str, str]
    pixels: dict[str, str]
    duplicates: list[list[str]]
    facts: dict[str, Facts]
    class_of: dict[str, str]

    def near_duplicates(self, progress: Callable[[int, int], None] | None = None) -> list[list[str]]:
        """Groups of paths of photos that are one photo again, the same pixels or nearly, or a series of one scene.

        Groups of the same pixels only are among `duplicates` and not here. See `near.alike`, also for `progress`.
        """
        return self._alike(progress)[0]

    def alike_by_nature(self) -> list[str]:
        """Photos that would be near-duplicates if others of their class were not as alike, as a fixed camera's are."""
        return self._alike()[1]

    def copies(self, group: Sequence[str]) -> list[list[str]]:
        """Of a group of near-duplicates, those that are one photo again: of a series they are apart from the rest."""
        files, thumbs = self._thumbnails(group)
        if len(files) <= near.HANDFUL:
            return [list(group)]
        return [[path for k in some for path in files[k]] for some in near.copies(thumbs)]

    def scenes(self, paths: Sequence[str]) -> np.ndarray:
        """int (N,): the same number for photos that are `duplicates` or `near_duplicates()` of one another."""
        number = {path: k for k, path in enumerate(paths)}
        for group in (*self.duplicates, *self.near_duplicates()):
            among = [path for path in group if path in number]
            number |= dict.fromkeys(among, number[among[0]] if among else 0)
        return np.array([number[path] for path in paths], np.int64)

    def _alike(self, progress: Callable[[int, int], None] | None = None) -> tuple[list[list[str]], list[str]]:
        """Groups of near-duplicates, and those alike by nature, with all files of the same pixels."""
        files, thumbs = self._thumbnails(self.pixels)
        names = [self.class_of[paths[0]] for paths in files]
        classes = np.unique(names, return_inverse=True)[1] if names else np.zeros(0, np.int64)
        asked = hashlib.sha256(thumbs.tobytes() + classes.tobytes()).hexdigest()[:32]
        kept = cache_folder() / "alike" / f"{asked}.json"
        found = _FOUND.get(asked) or _read_alike(kept, len(files))
        if found is None:
            found = near.alike(thumbs, classes, progress)
            _write_cache(kept, {"version": near.VERSION, **found._asdict()})
        if len(_FOUND) >= 8:
            _FOUND.clear()
        _FOUND[asked] = found
        groups = [[path for k in group for path in files[k]] for group in found.groups]
        return groups, [path for k in found.by_nature for path in files[k]]

    def _thumbnails(self, among: Iterable[str]) -> tuple[list[list[str]], np.ndarray]:
        """The paths of the same pixels, and the thumbnail of each such group: uint8 (N, 32, 32)."""
        same = collections.defaultdict(list)
        for path in among:
            same[self.pixels[path]].append(path)
        files = list(same.values())
        shape = (len(files), near.THUMB_PX, near.THUMB_PX)
        thumbs = b"".join(self.facts[paths[0]].thumbnail for paths in files)
        return files, np.frombuffer(thumbs, np.uint8).reshape(shape)


def examine(
    photos: Photos, progress: Callable[[int, int], None] | None = None, *, with_quality: bool = False
) -> Findings:
    """Decode every photo once, on all cores; broken files are listed, never raised.

    with_quality: measure how dark, flat and sharp each one is too, which takes as long as all the rest, and which
    `diagnose` needs.

    What was seen of whole photos is cached by path, size, modification time and content, so that a second look at the
    same folder reads only what is new, and decodes none that was only moved. `progress` is called with photos (done,
    total).
    """
    cache = cache_folder() / "examined" / f"{hashlib.sha256(str(photos.root.resolve()).encode()).hexdigest()[:32]}.json"
    known = _read_cache(cache)
    by_content = {entry[2]: entry[3:] for entry in known.values()}
    stamps = {path: _stamp(photos.root / path) for path in photos.paths}
    new = [
        path
        for path in photos.paths
        if not stamps[path] or known.get(path, [])[:2] != stamps[path] or (with_quality and not known[path][-1])
    ]
    sha256, reasons = {}, {}
    done = len(photos) - len(new)
    if progress:
        progress(done, len(photos))
    try:
        looks = in_threads(lambda path: _look(photos.root / path, by_content, with_quality), new, ahead=64)
        with contextlib.closing(looks):
            for path, (file_hash, seen, reason) in zip(new, looks, strict=True):
                if reason:  # not cached: a package installed later may be able to read it
                    known.pop(path, None)
                    reasons[path] = reason
                    if file_hash:
                        sha256[path] = file_hash
                else:
                    known[path] = [*stamps[path], file_hash, *seen]
                done += 1
                if progress:
                    progress(done, len(photos))
    finally:
        if new:
            # After Ctrl-C too: decoding thousands of large photos takes long.
            _write_cache(cache, {"version": _VERSION, "pillow": PIL.__version__, "photos": known})
    pixels, facts = {}, {}
    groups = collections.defaultdict(list)
    for path in dict.fromkeys(photos.paths):
        if path not in reasons:
            sha256[path], pixels[path] = known[path][2:4]
            *seen, thumbnail, measured = known[path][4:]
            facts[path] = Facts._make([*seen, base64.b64decode(thumbnail), Quality(*measured) if measured else None])
            groups[pixels[path]].append(path)
    return Findings(
        broken=list(reasons.items()),
        sha256=sha256,
        pixels=pixels,
        duplicates=[group for group in groups.values() if len(group) > 1],
        facts=facts,
        class_of={path: photos.classes[k] for path, k in zip(photos.paths, photos.labels.tolist(), strict=True)},
    )


def combined(of: Mapping[str, tuple[Findings, str]]) -> Findings:
    """The photos of several findings together, to find near-duplicates among them; nothing else is filled in.

    of: by the name that a photo has here, the findings that it is of and its path there.
    """
    return Findings(
        broken=[],
        sha256={},
        pixels={name: found.pixels[path] for name, (found, path) in of.items()},
        duplicates=[],
        facts={name: found.facts[path] for name, (found, path) in of.items()},
        class_of={name: found.class_of[path] for name, (found, path) in of.items()},
    )


def usable(photos: Photos, findings: Findings) -> Photos:
    """The photos that are not broken. Raises HandlensError when that leaves a class with none."""
    whole = photos.without([path for path, _ in findings.broken])
    counts = zip(photos.classes, photos.counts(), whole.counts(), strict=True)
    if lost := [name for name, before, after in counts if before and not after]:
        path, reason = next(pair for pair in findings.broken if findings.class_of[pair[0]] in lost)
        hint = "install it, or remove the class" if NEEDS_PACKAGE in reason else "replace them or remove the class"
        raise HandlensError(f"all photos of {listed(lost)} are broken (the first: {path} {reason})", hint)
    return whole


def _look(path: Path, by_content: dict[str, list[Any]], with_quality: bool) -> tuple[str, list[Any], str]:
    """(hash of the file, hash of the pixels with what else is kept, why it is broken); what does not apply is empty."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return "", [], f"cannot be read ({error.strerror})"
    file_hash = hashlib.sha256(data).hexdigest()
    known = by_content.get(file_hash)
    if known and (known[-1] or not with_quality):
        return file_hash, known, ""
    try:
        photo = open_photo(data)
    except PhotoError as error:
        install = f": {error.hint}" if NEEDS_PACKAGE in error.message else ""
        return file_hash, [], error.message.removeprefix("the photo ") + install
    pixel_hash = hashlib.sha256(f"{photo.size}".encode() + photo.tobytes()).hexdigest()
    measured = quality.measure(photo) if with_quality else None
    thumbnail = base64.b64encode(near.thumbnail(photo).tobytes()).decode()
    format_, orientation, animated, alpha = _header(data)
    return file_hash, [pixel_hash, *photo.size, format_, orientation, animated, alpha, thumbnail, measured], ""


def _header(data: bytes) -> tuple[str, int, bool, bool]:
    """Format, EXIF orientation, whether it is animated and whether it has alpha, of a file that can be decoded."""
    with Image.open(io.BytesIO(data)) as image:
        alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
        orientation, animated = 0, False
        with contextlib.suppress(Exception):  # Pillow raises nearly anything on metadata that make no sense
            orientation = int(image.getexif().get(0x0112, 0))
            # A phone's JPEG with a second picture inside (MPO) does not move.
            animated = bool(getattr(image, "is_animated", False)) and image.format in ("GIF", "PNG", "WEBP", "TIFF")
        return image.format or "", orientation, animated, alpha


def _stamp(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


_KINDS = (int, int, str, str, int, int, str, int, bool, bool, str)
_QUALITY_KINDS = (bool, int, int, float, float)


def _read_cache(cache: Path) -> dict[str, list[Any]]:
    """Entries [size_bytes, mtime_ns, sha256, pixels, facts ...] by path; none where the cache cannot be trusted."""
    try:
        value = json.loads(cache.read_text(encoding="utf-8"))
        if value["pillow"] != PIL.__version__ or value["version"] != _VERSION:  # its decoders may give other pixels
            return {}
        whole = 4 * ((near.THUMB_PX**2 + 2) // 3)  # characters of a thumbnail
        return {
            path: entry
            for path, entry in value["photos"].items()
            if tuple(map(type, entry[:-1])) == _KINDS
            and len(entry[-2]) == whole
            and (entry[-1] is None or tuple(map(type, entry[-1])) == _QUALITY_KINDS)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _read_alike(cache: Path, count: int) -> near.Alike | None:
    """What was found among `count` thumbnails, if it can be trusted."""
    try:
        value = json.loads(cache.read_text(encoding="utf-8"))
        found = near.Alike(value["groups"], value["by_nature"])
        named = [k for group in (*found.groups, found.by_nature) for k in group]
        trusted = value["version"] == near.VERSION and all(type(k) is int and 0 <= k < count for k in named)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if trusted else None


def _write_cache(cache: Path, value: dict[str, Any]) -> None:
    # A full disk costs the next run some time, and this one nothing.
    with contextlib.suppress(OSError, HandlensError), atomic(cache, "w") as file:
        file.write(json.dumps(value))
