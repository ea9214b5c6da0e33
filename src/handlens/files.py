"""How anything reaches the disk: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import lzma
import os
import re
import secrets
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from handlens.errors import HandlensError, quoted

WINDOWS = sys.platform == "win32"
MADE = ".made-by-handlens"  # in a folder whose pictures are not photos: scanning passes it over
# In a run's folder:
FACTS = "handlens.json"
WEIGHTS = "model.safetensors"
FAMILIAR = "familiar.safetensors"
RECIPE = "recipe.toml"
SPLIT = "split.json"
STATE = "state.pt"  # while it is unfinished
UNKNOWN = "unknown.json"  # which photos of other things chose the threshold
CURVES = "curves.png"
PLAN = "plan.json"  # in a folder with several runs


def patiently(move: Callable[[], object]) -> None:
    """Rename or remove something; where Windows says that it is in use, again for up to three seconds.

    It lets nobody rename a file, or a folder of files, while a virus scanner looks at what was just written.
    """
    for wait_s in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
        try:
            move()
            return
        except PermissionError:
            if not WINDOWS:
                raise
        time.sleep(wait_s)
    move()


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` for writing; rename it to `path` when the block ends without an error.

    Whatever goes wrong, `path` holds either its old content or the whole new one, and no temporary file is left.
    `mode` is "wb" or "w" (UTF-8). Where `path` is a link, what it leads to is written. Raises HandlensError when the
    disk is full, when the folder cannot be written, and when a pipe or a device is there.
    """
    path = _behind_links(path)
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        patiently(lambda: os.replace(temporary, path))
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        with contextlib.suppress(
            OSError
        ):  # gone already when the rename succeeded, never made when a file is in the way
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a temporary folder beside `path`; rename it to `path` when the block ends without an error.

    Whatever goes wrong, there is either the whole folder or none. Raises HandlensError when something is at `path`
    when the block ends, and when the disk is full or the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if os.path.lexists(path):  # rename would take the place of an empty folder
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        patiently(lambda: temporary.rename(path))
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _behind_links(path: str | os.PathLike[str]) -> Path:
    """Where the file is, or will be, that a write of `path` is for: renaming to a link would take the link's place.

    Raises HandlensError where it is neither file nor folder: a pipe or a device would be replaced too.
    """
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise HandlensError(f"{path} is a pipe or a device, expected the name of a file", "choose another name")
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    except OSError as error:  # such as a name that is too long
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: str | os.PathLike[str]) -> Exception:
    """The sentence for a failed write of `path`; an error that is not about the disk comes back unchanged."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HandlensError(f"the disk is full: {path} could not be written", "free some space and try again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HandlensError(f"{path} may not be written", "choose another place or change its permissions")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return HandlensError(f"{path} cannot be written: a file or folder of that name is in the way", "choose another")
    if error.errno == errno.ENOENT and Path(error.filename or "").parent == Path(path).parent:
        return HandlensError(f"{path} cannot be written: its folder takes no new files", "choose another place")
    if error.errno == errno.ENAMETOOLONG:
        return HandlensError(
            f"the name {Path(path).name[:40]}... is longer than this disk takes", "choose a shorter one"
        )
    if error.errno == errno.EINVAL and WINDOWS:
        return HandlensError(f"{path} is no name that Windows takes", 'choose one without < > : " | ? *')
    return error


def used_error(error: OSError) -> Exception:
    """The sentence for a file that could not be used, read or written; else as `disk_error`."""
    name = error.filename or "a file"
    if error.errno == errno.ENOENT:
        return HandlensError(f"{name} does not exist, or not any more", "check the path, and try again")
    if error.errno in (errno.EACCES, errno.EPERM):
        return HandlensError(f"{name} may not be read or written", "change its permissions")
    return disk_error(error, name)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically. NaN and infinities are refused (ValueError)."""
    with atomic(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON value in `path`. Raises HandlensError when it is missing, a folder, or not JSON."""
    if os.path.isdir(path):
        raise HandlensError(f"{path} is a folder, expected a JSON file", "name the file")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HandlensError(f"{path} does not exist", "check the path") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number or nesting without end
        raise HandlensError(f"{path} is not JSON ({error})", "it may be damaged; make it again") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(name: str) -> str:
    """`name` as a file or folder name that every system takes: no separators, no reserved names, 200 bytes at most."""
    name = name.encode("utf-8", "replace").decode()  # first: what is not text becomes a question mark
    cleaned = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", name).encode()[:200].decode("utf-8", "ignore")
    cleaned = cleaned.strip().rstrip(". ")
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", cleaned)
    return f"_{cleaned}" if reserved or not cleaned or cleaned.startswith(".") else cleaned


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """For each name that of a folder, safe and no other's on any system: what would be one folder gets -2, -3."""
    folders: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        folders[name] = free_name(safe_name(name), lambda tried: tried.casefold() not in taken)
        taken.add(folders[name].casefold())
    return folders


def free_name(name: str, is_free: Callable[[str], bool], suffix: str = "") -> str:
    """The first of name, name-2, name-3 ..., each with the suffix, that is free."""
    tried, number = name + suffix, 1
    while not is_free(tried):
        number += 1
        tried = f"{name}-{number}{suffix}"
    return tried


def cache_folder() -> Path:
    """Where downloads and cached features live: $HANDLENS_CACHE, else the user's cache folder.

    Raises HandlensError when that is in a home folder and there is none.
    """
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    try:
        if given := os.environ.get("HANDLENS_CACHE"):
            return Path(given).expanduser()
        return Path(base) / "handlens" if base else Path.home() / ".cache" / "handlens"
    except RuntimeError:
        raise HandlensError(
            "there is no home folder to keep the cache in", "set HANDLENS_CACHE to the whole path of a folder"
        ) from None


_BROKEN = (  # what the readers of archives raise for a damaged one, besides RuntimeError for one with a password
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError,
)  # fmt: skip


def extract(archive: str | os.PathLike[str], folder: str | os.PathLike[str], limit_bytes: int = 16 << 30) -> Path:
    """Unpack a .zip, or a .tar with or without compression, into a new `folder`: whole, or not at all.

    Only files and folders below `folder` come out, without their owners and permissions. Raises HandlensError when
    the archive is broken or is none, when it holds a link, a device, or a name that leads outside or comes twice,
    when it unpacks to more than `limit_bytes`, when `folder` exists, and when the disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise HandlensError(f"{archive} does not exist or is no file", "check the path")
    if folder.exists():
        raise HandlensError(f"{folder} exists", "remove it or choose another folder")
    temporary = folder.with_name(f".{folder.name[:60]}.{secrets.token_hex(4)}.part")
    left, name = limit_bytes, ""
    try:
        temporary.mkdir(parents=True)
        for name, content in _members(archive):
            path = temporary / _inside(archive, name)
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                while chunk := content.read(1 << 20):
                    left -= len(chunk)
                    if left < 0:
                        raise HandlensError(
                            f"{archive} unpacks to more than {limit_bytes:,} bytes", "is it the right one?"
                        )
                    file.write(chunk)
        try:
            patiently(lambda: temporary.rename(folder))
        except OSError:
            if not folder.is_dir():  # else another process has unpacked it meanwhile
                raise
    except _BROKEN as error:
        raise HandlensError(f"{archive} is broken or is no archive ({error})", "fetch or pack it again") from error
    except FileExistsError as error:
        raise HandlensError(f"{archive} holds {name!r} twice", "pack it again") from error
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """(name, content or None for a folder) of each member; other kinds of members are refused."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zip_:
            for entry in zip_.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                _refuse_unless(kind in (0, stat.S_IFREG, stat.S_IFDIR), archive, entry.filename)
                if entry.is_dir():
                    yield entry.filename, None
                else:
                    with zip_.open(entry) as content:
                        yield entry.filename, content
    else:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                _refuse_unless(member.isfile() or member.isdir(), archive, member.name)
                yield member.name, tar.extractfile(member) if member.isfile() else None


def _refuse_unless(ordinary: bool, archive: Path, name: str) -> None:
    if not ordinary:
        raise HandlensError(f"{archive} holds {name!r}, a link or device", "only files and folders are unpacked")


def _inside(archive: Path, name: str) -> PurePosixPath:
    """A member's name as a path that stays where it is put."""
    path = PurePosixPath(name)
    foreign = "\\" in name or "\0" in name or (os.name == "nt" and ":" in name)
    if path.is_absolute() or ".." in path.parts or foreign:
        raise HandlensError(f"{archive} holds {name!r}, a name that leads outside its folder", "do not trust it")
    return path


def check_place(path: str | os.PathLike[str], *endings: str) -> None:
    """Raise HandlensError where nothing can be written at `path`, or a folder is: told before long work, not after it.

    Folders above it that are missing are no hindrance: whatever writes makes them. endings: the name must have one of
    them, such as ".csv", so that no photo is overwritten where the name of the file was forgotten before it.
    """
    path = Path(path)
    place = _behind_links(path)
    if place.is_dir():
        raise HandlensError(f"{path} is a folder, expected the name of a file", "choose another name")
    if endings and path.suffix.lower() not in endings:
        raise HandlensError(
            f"{path} would be written, expected a name that ends in {' or '.join(endings)}",
            f"name it {quoted(path.with_suffix(endings[0]).name)}, say",
        )
    above = next(parent for parent in place.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise HandlensError(f"{path} cannot be written: {above} is no folder", "choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise disk_error(PermissionError(errno.EACCES, "may not be written", str(path)), path)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder and those above it. Raises HandlensError when it cannot be made."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error


def make_own_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder for what is made here, if need be, and mark it: pictures in it are no photos to train on."""
    if not Path(path, MADE).is_file():
        with atomic(Path(path, MADE), "w") as file:
            file.write("Made by handlens: pictures in this folder are not taken for photos to train on.\n")
