"""What is shipped: an exported network with all that is needed to use it and to check it, in one folder or zip.

A JSON manifest, the artifact that a runtime loads, and a few photos with the answers that the trained network gave.
Nothing in it is executable or pickled, and nothing is unpacked to the disk: a bundle from a stranger can be read
safely. docs/bundle-format.md is the format on one page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from PIL import Image

import handlens
from handlens import files
from handlens.errors import HandlensError
from handlens.preprocess import Preprocess, Source, open_photo

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
FACTS_KEY = "handlens"  # the name under which an artifact carries its facts
PRECISIONS = ("float32", "float16", "bfloat16", "int8")
LIMIT_BYTES = 2 << 30  # all members together; neither protobuf nor flatbuffers can hold more
MANIFEST_LIMIT_BYTES = 16 << 20
MOST_MEMBERS = 1000
SCORES = ("max-softmax", "energy")  # by which a photo is found to be unknown: see evaluate/unknown.py
DENSEST = 200  # a zip whose members are together this many times its size is a bomb
GOLDEN_PX = 512  # longer side of a golden photo
_ARTIFACTS = {  # members of each runtime's artifact
    "onnx": {"model.onnx"},
    "litert": {"model.tflite"},
    "executorch": {"model.pte"},
    "openvino": {"model.xml", "model.bin"},
    "coreml": {"model.mlpackage/Manifest.json"},  # and whatever else is in that folder
}
RUNTIMES = tuple(_ARTIFACTS)
_MEMBERS: dict[str, tuple[type, ...]] = {  # of the manifest, with the kinds of value that each may hold
    "format_version": (int,),
    "handlens_version": (str,),
    "runtime": (str,),
    "precision": (str,),
    "net": (str,),
    "classes": (list,),
    "preprocess": (dict,),
    "card": (dict,),
    "golden": (list,),
    "calibration": (dict, type(None)),
    "rejection": (dict, type(None)),
    "files": (dict,),
    "manifest_sha256": (str,),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Golden:
    """A photo to check a bundle with: a JPEG without metadata, and the float checkpoint's answer before export."""

    photo: bytes
    probabilities: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a bundle holds.

    runtime:   "onnx", "litert", "executorch", "openvino" or "coreml".
    precision: "float32", "float16", "bfloat16" or "int8".
    artifact:  content by member: "model.onnx"; "model.tflite"; "model.pte"; "model.xml" and "model.bin"; or the
               members of "model.mlpackage/".
    card:      JSON-ready: data, splits, figures with intervals, sizes, processor, dates, versions, licence.
    calibration: {"temperature": T, ...}: what the artifact divides its logits by before its softmax, or None.
    rejection: {"kind": one of SCORES, "threshold": number}: a photo with a lower score is unknown; or None.
    """

    runtime: str
    precision: str
    artifact: Mapping[str, bytes]
    net: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    card: dict[str, Any]
    golden: tuple[Golden, ...] = ()
    calibration: dict[str, Any] | None = None
    rejection: dict[str, Any] | None = None
    handlens_version: str = handlens.__version__


def facts(
    net: str, classes: tuple[str, ...], preprocess: Preprocess, handlens_version: str = handlens.__version__
) -> str:
    """What every artifact carries inside itself, by its format's own means: one line of JSON in ASCII."""
    return _canonical(
        {
            "format_version": FORMAT_VERSION,
            "handlens_version": handlens_version,
            "net": net,
            "classes": list(classes),
            "preprocess": preprocess.to_dict(),
        }
    )


def compare_facts(path: str | os.PathLike[str], bundle: Bundle, embedded: str) -> None:
    """Refuse a bundle at `path` whose artifact carries other facts than its manifest.

    Raises HandlensError naming what differs: an artifact of another network, or one made by another version.
    """
    expected = json.loads(facts(bundle.net, bundle.classes, bundle.preprocess, bundle.handlens_version))
    try:
        found = json.loads(embedded)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _refusal(path, "has an artifact whose own facts are not JSON")
    if found.get("format_version") != FORMAT_VERSION:
        version = str(found.get("format_version"))[:20]
        raise _refusal(
            path,
            f"has an artifact of format {version}, this handlens reads format {FORMAT_VERSION}",
            "use the handlens that made it, or export again",
        )
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise _refusal(
                path,
                f"holds an artifact made for other {name} than its {MANIFEST} names",
                "do not use it; export again",
            )


def strip(photo: Source, longest_px: int = GOLDEN_PX) -> bytes:
    """A photo as a new JPEG with upright pixels and nothing else of the file: no EXIF, comment or colour profile.

    The longer side has at most `longest_px`. Raises PhotoError when the photo cannot be read.
    """
    image = open_photo(photo)
    image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(jpeg, "JPEG", quality=92)
    return jpeg.getvalue()


# ---- writing ---------------------------------------------------------------------------------------------------------
def write(path: str | os.PathLike[str], bundle: Bundle) -> None:
    """Write a bundle: a zip if `path` ends in .zip, else a folder; whole or not at all.

    Raises HandlensError when `path` exists, when the bundle would not be read again, and when the disk is full.
    """
    path = Path(path)
    refuse_existing(path)
    members = dict(bundle.artifact)
    members |= {f"golden/{index}.jpg": golden.photo for index, golden in enumerate(bundle.golden)}
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "handlens_version": bundle.handlens_version,
        "runtime": bundle.runtime,
        "precision": bundle.precision,
        "net": bundle.net,
        "classes": list(bundle.classes),
        "preprocess": bundle.preprocess.to_dict(),
        "card": bundle.card,
        "golden": [
            {"photo": f"golden/{index}.jpg", "probabilities": list(golden.probabilities)}
            for index, golden in enumerate(bundle.golden)
        ],
        "calibration": bundle.calibration,
        "rejection": bundle.rejection,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
            for name, content in members.items()
        },
    }
    manifest["manifest_sha256"] = _manifest_sha256(manifest)
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode()
    _check_length(path, len(text))
    _checked(path, text)
    members = {MANIFEST: text, **members}
    if path.suffix.lower() == ".zip":
        with files.atomic(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as zip_:
            for name, content in members.items():
                entry = zipfile.ZipInfo(name)  # of 1980: the same content gives the same file
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                zip_.writestr(entry, content)
        return
    with files.atomic_folder(path) as folder:
        for name, content in members.items():
            files.make_folder((folder / name).parent)
            with files.atomic(folder / name) as file:
                file.write(content)


def refuse_existing(path: str | os.PathLike[str]) -> None:
    """Raise HandlensError when something is at `path` already: bundles are never overwritten."""
    if os.path.lexists(path):
        raise HandlensError(f"{path} exists", "choose another name or remove it")


# ---- reading ---------------------------------------------------------------------------------------------------------
def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is meant as a bundle: a folder with a manifest, or a file ending in .zip."""
    path = Path(path)
    return (path / MANIFEST).is_file() if path.is_dir() else path.suffix.lower() == ".zip"


def read(path: str | os.PathLike[str]) -> Bundle:
    """Read and verify a bundle, in memory.

    Raises HandlensError for anything that is not exactly what `write` makes: unknown versions and fields, values out
    of range, names that lead outside, links, missing, additional, damaged or oversize members.
    """
    path = Path(path)
    try:
        with _members(path) as (sizes, open_member):
            if MANIFEST not in sizes:
                raise _refusal(path, f"is no bundle: it has no {MANIFEST}", "`handlens export` makes one")
            _check_length(path, sizes[MANIFEST])
            manifest = _checked(path, _content(path, open_member, MANIFEST, sizes[MANIFEST]))
            listed: dict[str, dict[str, Any]] = manifest["files"]
            for name in sorted(listed.keys() - sizes.keys()):
                raise _refusal(path, f"has no {name}, which its {MANIFEST} lists")
            for name in sorted(sizes.keys() - listed.keys() - {MANIFEST}):
                raise _refusal(path, f"holds {name!r}, which its {MANIFEST} does not list", "remove it")
            contents = {}
            for name, entry in listed.items():
                if sizes[name] != entry["size_bytes"]:
                    raise _refusal(
                        path, f"has a {name} of {sizes[name]:,} bytes, its {MANIFEST} says {entry['size_bytes']:,}"
                    )
                contents[name] = _content(path, open_member, name, sizes[name])
                if hashlib.sha256(contents[name]).hexdigest() != entry["sha256"]:
                    raise _refusal(path, f"has another {name} than its {MANIFEST} lists: the SHA-256 differs")
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror or error})", "check the path") from error
    golden = tuple(
        Golden(photo=contents.pop(entry["photo"]), probabilities=tuple(map(float, entry["probabilities"])))
        for entry in manifest["golden"]
    )
    return Bundle(
        runtime=manifest["runtime"],
        precision=manifest["precision"],
        artifact=contents,
        net=manifest["net"],
        classes=tuple(manifest["classes"]),
        preprocess=manifest["preprocess"],
        card=manifest["card"],
        golden=golden,
        calibration=manifest["calibration"],
        rejection=manifest["rejection"],
        handlens_version=manifest["handlens_version"],
    )


_Open = Callable[[str], IO[bytes]]
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OverflowError)


@contextlib.contextmanager
def _members(path: Path) -> Iterator[tuple[dict[str, int], _Open]]:
    """The size in bytes of each member as declared, and a way to open one; only ordinary files, only plain names."""
    if path.is_dir():
        yield _folder_members(path), lambda name: open(path / name, "rb")  # noqa: SIM115
    elif not path.is_file():
        what = "is no file or folder" if os.path.lexists(path) else "does not exist"
        raise _refusal(path, what, "check the path")
    else:
        try:
            with zipfile.ZipFile(path) as zip_:
                yield _zip_members(path, zip_), zip_.open
        except _BROKEN_ZIP as error:
            raise _refusal(path, f"is damaged or no zip ({error or type(error).__name__})") from error


_LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")  # in folders that were looked at


def _folder_members(root: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    folders, seen = [root], 0
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name in _LEFT_BY_SYSTEMS or entry.name.startswith("._"):
                    continue
                name = Path(entry.path).relative_to(root).as_posix()
                seen += 1
                if seen > 2 * MOST_MEMBERS:
                    raise _refusal(root, f"holds more than {MOST_MEMBERS:,} files", "is it the right folder?")
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    sizes[name] = entry.stat(follow_symlinks=False).st_size
                else:
                    raise _refusal(root, f"holds {name!r}, a link or device", "a bundle has only files and folders")
    return sizes


def _zip_members(path: Path, zip_: zipfile.ZipFile) -> dict[str, int]:
    entries = zip_.infolist()
    if len(entries) > 2 * MOST_MEMBERS:
        raise _refusal(path, f"holds more than {MOST_MEMBERS:,} files", "is it the right one?")
    sizes: dict[str, int] = {}
    for entry in entries:
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refusal(path, f"holds {entry.filename!r}, a link or device", "a bundle has only files and folders")
        if not _is_plain(entry.filename.removesuffix("/")):
            raise _refusal(path, f"holds {entry.filename!r}, which is no name of a bundle's member", "do not trust it")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others take any memory they ask for
            raise _refusal(path, f"holds {entry.filename!r} packed in an unusual way", "store or deflate it")
        if entry.filename in sizes:
            raise _refusal(path, f"holds {entry.filename!r} twice", "pack it again")
        if not entry.is_dir():
            sizes[entry.filename] = entry.file_size
    if sum(sizes.values()) > min(LIMIT_BYTES, DENSEST * path.stat().st_size):
        raise _refusal(path, f"would unpack to {sum(sizes.values()):,} bytes", "do not trust it")
    return sizes


def _is_plain(name: str) -> bool:
    """Whether a member's name is a relative path that means the same on every system and stays where it is put."""
    if len(name) > 200 or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_. -]*(/[A-Za-z0-9_][A-Za-z0-9_. -]*)*", name):
        return False
    return all(files.safe_name(part) == part for part in PurePosixPath(name).parts)


def _content(path: Path, open_member: _Open, name: str, size_bytes: int) -> bytes:
    """A member's bytes, of which there must be as many as were declared; no more than these are read."""
    with open_member(name) as file:
        data = file.read(size_bytes + 1)
    if len(data) != size_bytes:
        raise _refusal(path, f"has a {name} that is not {size_bytes:,} bytes long")
    return data


# ---- the manifest ----------------------------------------------------------------------------------------------------
def _checked(path: Path, text: bytes) -> dict[str, Any]:
    """The manifest's members, each as it must be; `preprocess` as a Preprocess."""
    manifest = _json(path, text)
    version = manifest.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise _refusal(
            path,
            f"is a bundle of format {str(version)[:20]}, this handlens reads format {FORMAT_VERSION}",
            "use the handlens that made it, or export again",
        )
    for name in sorted(manifest.keys() - _MEMBERS.keys()):
        raise _wrong(path, name, "no field of this format")
    for name, kinds in _MEMBERS.items():
        if type(manifest.get(name, ...)) not in kinds:  # type, not isinstance: true is no number here
            raise _wrong(path, name, "missing" if name not in manifest else "of the wrong kind")
    if manifest["manifest_sha256"] != _manifest_sha256(manifest):
        raise _refusal(path, f"has a {MANIFEST} that was changed after it was written: its SHA-256 differs")
    _check_what_it_is(path, manifest)
    _check_files(path, manifest["runtime"], manifest["files"])
    _check_golden(path, manifest)
    return manifest


def _json(path: Path, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a field twice")
        return made

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        value = json.loads(text.decode(), object_pairs_hook=once, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # 1e999 and half characters are no values
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"has a {MANIFEST} that is not proper JSON ({str(error)[:100]})") from error
    if not isinstance(value, dict):
        raise _refusal(path, f"has a {MANIFEST} that is no JSON object")
    return value


def _check_what_it_is(path: Path, manifest: dict[str, Any]) -> None:
    for name, known in (("runtime", RUNTIMES), ("precision", PRECISIONS)):
        if manifest[name] not in known:
            raise _wrong(path, name, f"{manifest[name][:40]!r}, expected one of {', '.join(known)}")
    for name in ("net", "handlens_version"):
        if not re.fullmatch(r"[\w.+-]{1,100}", manifest[name], re.ASCII):
            raise _wrong(path, name, "no name of letters, digits and ._+-")
    classes = manifest["classes"]
    if not all(isinstance(name, str) and name and not re.search(r"[\x00-\x1f\x7f-\x9f]", name) for name in classes):
        raise _wrong(path, "classes", "not all names: text without control characters")
    if not classes or len(set(classes)) != len(classes):
        raise _wrong(path, "classes", "empty" if not classes else "naming a class twice")
    _check_confidence(path, manifest)
    try:
        manifest["preprocess"] = Preprocess.from_dict(manifest["preprocess"])
    except (HandlensError, OverflowError) as error:
        raise _refusal(path, f"has an improper pixel contract: {error}") from error


def _check_confidence(path: Path, manifest: dict[str, Any]) -> None:
    calibration, rejection = manifest["calibration"], manifest["rejection"]
    if calibration is not None:
        temperature = calibration.get("temperature")
        if type(temperature) not in (int, float) or not 0 < temperature <= 1e9:
            raise _wrong(path, "calibration", "without a temperature above 0")
    if rejection is None:
        return
    if rejection.keys() != {"kind", "threshold"} or rejection["kind"] not in SCORES:
        raise _wrong(path, "rejection", f"not of a kind, {' or '.join(SCORES)}, and a threshold")
    if type(rejection["threshold"]) not in (int, float) or not abs(rejection["threshold"]) <= 1e9:
        raise _wrong(path, "rejection", "of a threshold beyond all scores")


def _check_files(path: Path, runtime: str, listed: dict[str, Any]) -> None:
    if len(listed) > MOST_MEMBERS:
        raise _wrong(path, "files", f"a list of more than {MOST_MEMBERS:,}")
    for name, entry in listed.items():
        proper = (
            isinstance(entry, dict)
            and entry.keys() == {"sha256", "size_bytes"}
            and type(entry["size_bytes"]) is int
            and entry["size_bytes"] >= 0
            and isinstance(entry["sha256"], str)
            and re.fullmatch("[0-9a-f]{64}", entry["sha256"])
        )
        if not _is_plain(name) or not proper:
            raise _wrong(path, "files", f"improper at {name[:100]!r}")
    if sum(entry["size_bytes"] for entry in listed.values()) > LIMIT_BYTES:
        raise _wrong(path, "files", f"a list of more than {LIMIT_BYTES:,} bytes")
    artifact = {name for name in listed if not name.startswith("golden/")}
    needed = _ARTIFACTS[runtime]
    if runtime == "coreml":
        artifact = {name for name in artifact if name in needed or not name.startswith("model.mlpackage/")}
    if artifact != needed:
        names = ", ".join(sorted(artifact))[:200] or "none"
        raise _refusal(path, f"has the members {names} for {runtime}, expected {', '.join(sorted(needed))}")


def _check_golden(path: Path, manifest: dict[str, Any]) -> None:
    photos = set()
    for entry in manifest["golden"]:
        if not isinstance(entry, dict) or entry.keys() != {"photo", "probabilities"}:
            raise _wrong(path, "golden", "not all of a photo and its probabilities")
        answer = entry["probabilities"]
        if (
            not isinstance(answer, list)
            or len(answer) != len(manifest["classes"])
            or not all(type(value) in (int, float) and 0 <= value <= 1 for value in answer)
            or not math.isclose(math.fsum(answer), 1, abs_tol=1e-3)
        ):
            raise _wrong(path, "golden", "not of one probability for each class, summing to 1")
        if not isinstance(entry["photo"], str) or entry["photo"] in photos:
            raise _wrong(path, "golden", "without a photo of its own for each answer")
        photos.add(entry["photo"])
    if photos != {name for name in manifest["files"] if name.startswith("golden/")}:
        raise _wrong(path, "golden", f"not about the photos that {MANIFEST} lists")


def _manifest_sha256(manifest: dict[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(_canonical(rest).encode()).hexdigest()


def _canonical(value: Any) -> str:
    """JSON in ASCII with sorted names and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _wrong(path: str | os.PathLike[str], name: str, what: str) -> HandlensError:
    return _refusal(path, f"has a {MANIFEST} whose {name[:40]!r} is {what}")


def _check_length(path: str | os.PathLike[str], length: int) -> None:
    if length > MANIFEST_LIMIT_BYTES:
        raise _refusal(path, f"has a {MANIFEST} of more than {MANIFEST_LIMIT_BYTES:,} bytes")


def _refusal(path: str | os.PathLike[str], what: str, hint: str = "copy it again, or export again") -> HandlensError:
    return HandlensError(f"{path} {what}", hint)
