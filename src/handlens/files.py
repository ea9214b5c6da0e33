"""How anything reaches the disk: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from handlens.errors import HandlensError


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` for writing; rename it to `path` when the block ends without an error.

    Whatever goes wrong, `path` holds either its old content or the whole new one, and no temporary file is left.
    `mode` is "wb" or "w" (UTF-8). Raises HandlensError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)  # gone already when the rename succeeded


def disk_error(error: OSError, path: str | os.PathLike[str]) -> Exception:
    """The sentence for a failed write of `path`; an error that is not about the disk comes back unchanged."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HandlensError(f"the disk is full: {path} could not be written", "free some space and try again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HandlensError(f"{path} may not be written", "choose another place or change its permissions")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return HandlensError(f"{path} cannot be written: a file or folder of that name is in the way", "choose another")
    return error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically. NaN and infinities are refused (ValueError)."""
    with atomic(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON value in `path`. Raises HandlensError when it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HandlensError(f"{path} does not exist", "check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HandlensError(f"{path} is not JSON ({error})", "it may be damaged; make it again") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where downloads and cached features live: $HANDLENS_CACHE, else the user's cache folder."""
    if given := os.environ.get("HANDLENS_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return Path(base) / "handlens" if base else Path.home() / ".cache" / "handlens"

