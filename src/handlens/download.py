"""One way to fetch a file: cached, resumed, checked by its hash, and in clear words when there is no network."""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from handlens import files
from handlens.errors import HandlensError

Progress = Callable[[int, int], None]

_CHUNK_BYTES = 1 << 16
_TRIES = 5  # without getting a megabyte further
_PAUSE_S = 0.5  # before the second try, doubled before each later one
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers worth another try


def fetch(
    url: str,
    *,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    name: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    size_bytes: int | None = None,
    progress: Progress | None = None,
    timeout_s: float = 20.0,
) -> Path:
    """Fetch `url` into `folder` (default: the cache's `downloads`) as `name` (default: the URL's last part).

    A file already there with the right hash, or size where no hash is known, is not fetched again. The hash is given
    whole as `sha256`, or by its first hexadecimal digits as `sha256_prefix`. What has come so far lies beside it as
    `NAME.part` and is continued by the next try or call, unless the server's file has changed since. Of two processes
    that fetch the same file, the second waits and takes what the first got. `progress` is called with
    (bytes here, bytes in all, or 0 where the server does not say); `timeout_s` is how long a silent server is
    waited for.

    Raises HandlensError when the server cannot be reached, does not have the file, stops again and again, sends
    something with another hash or size, or when the disk is full.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise HandlensError(f"{url!r} is no http or https address", "check the address")
    wanted = _Wanted(url, (sha256 or sha256_prefix or "").lower(), size_bytes)
    target = (Path(folder) if folder else files.cache_folder() / "downloads") / (name or _name_in(url))
    if _is_right(target, wanted):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if not _is_right(target, wanted):  # else another process has fetched it meanwhile
                _fetch_checked(wanted, target, progress, timeout_s)
    except OSError as error:
        raise files.disk_error(error, target) from None
    return target


class _Wanted(NamedTuple):
    url: str
    sha256: str  # its beginning, or all of it, or ""
    size_bytes: int | None


class _Part:
    """The file as far as it has come, `NAME.part`, and beside it which version of the server's file it belongs to."""

    def __init__(self, target: Path, url: str) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")
        self.url = url
        self.validator, self.total = "", 0  # the server's name for the version (ETag or date), and its bytes
        try:
            note = json.loads(self.note.read_text("utf-8"))
            known, self.validator, self.total = note["url"], str(note["validator"]), int(note["total"])
        except (OSError, ValueError, KeyError, TypeError):
            known = None
        if known != url:
            self.drop()

    def size(self) -> int:
        if not (self.validator or self.total):
            return 0  # nothing tells whether it is still the beginning of the server's file
        return self.path.stat().st_size if self.path.exists() else 0

    def describe(self, validator: str, total: int) -> None:
        self.validator, self.total = validator, total
        self.note.write_text(json.dumps({"url": self.url, "validator": validator, "total": total}), "utf-8")

    def drop(self) -> None:
        for path in (self.path, self.note):
            files.patiently(functools.partial(path.unlink, missing_ok=True))
        self.validator, self.total = "", 0


class _InterruptedError(Exception):
    """The transfer stopped in a way that another try may mend."""


def _fetch_checked(wanted: _Wanted, target: Path, progress: Progress | None, timeout_s: float) -> None:
    """Fetch, check, rename. A resumed file whose hash is wrong gets one more chance, from its first byte."""
    part = _Part(target, wanted.url)
    while True:
        resumed = part.size() > 0
        try:
            _transfer(wanted, part, progress, timeout_s)
            found, size = files.sha256_of(part.path), part.path.stat().st_size
        except OSError:  # the disk's: those of the network are HandlensErrors by now
            part.drop()
            raise
        if found.startswith(wanted.sha256) and wanted.size_bytes in (None, size):
            files.patiently(lambda: os.replace(part.path, target))
            part.drop()
            return
        part.drop()
        if not resumed:
            host = urllib.parse.urlsplit(wanted.url).netloc
            if not found.startswith(wanted.sha256):
                begins = "" if len(wanted.sha256) == 64 else "one that begins with "
                problem = f"has the SHA-256 {found}, expected {begins}{wanted.sha256}"
            else:
                problem = f"is {size:,} bytes long, expected {wanted.size_bytes:,}"
            raise HandlensError(f"{target.name} from {host} {problem}", "it was not kept; try again later")


def _transfer(wanted: _Wanted, part: _Part, progress: Progress | None, timeout_s: float) -> None:
    """Bring `part` to its full length, in as many tries as it takes while they get further."""
    tries = 0
    while not part.total or part.size() < part.total:
        before = part.size()
        try:
            _receive(wanted, part, progress, timeout_s)
            return
        except _InterruptedError as error:
            tries = 1 if part.size() - before >= 1 << 20 else tries + 1
            if tries >= _TRIES:
                raise HandlensError(
                    f"{wanted.url} stopped after {part.size():,} bytes ({error})",
                    "try again: it continues where it stopped",
                ) from None
            time.sleep(_PAUSE_S * 2 ** (tries - 1))


def _receive(wanted: _Wanted, part: _Part, progress: Progress | None, timeout_s: float) -> None:
    """One request for what is missing of `part`, appended to it. Raises _InterruptedError when it ends too early."""
    with _open(wanted.url, part, timeout_s) as response:
        have, total = _agree(response, part)
        if wanted.size_bytes and total and total != wanted.size_bytes:
            part.drop()
            raise HandlensError(
                f"{wanted.url} is {total:,} bytes long, expected {wanted.size_bytes:,}", "it may have been replaced"
            )
        with part.path.open("ab" if have else "wb") as file:
            try:
                while chunk := _read(response):
                    file.write(chunk)
                    have += len(chunk)
                    if progress:
                        progress(have, total)
            finally:
                file.flush()
            os.fsync(file.fileno())
        if have < total:
            raise _InterruptedError(f"{total:,} were announced")
        if total and have > total:
            part.drop()
            raise _InterruptedError(f"only {total:,} were announced")


def _open(url: str, part: _Part, timeout_s: float) -> http.client.HTTPResponse:
    """Ask for `url` from where `part` ends. Raises HandlensError, or _InterruptedError where another try may help."""
    headers = {"User-Agent": "handlens", "Accept-Encoding": "identity"}
    if have := part.size():
        headers["Range"] = f"bytes={have}-"
        if part.validator:
            headers["If-Range"] = part.validator
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(  # http and https only, see fetch
            urllib.request.Request(url, headers=headers), timeout=timeout_s
        )
        return response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file is shorter than what is here, so it is another one
            part.drop()
        if error.code == 416 or error.code in _BUSY:
            raise _InterruptedError(f"the server answered {error.code}") from None
        if error.code in (404, 410):
            raise HandlensError(
                f"{url} does not exist on the server ({error.code})", "it may have moved; check the address"
            ) from None
        raise HandlensError(f"{url} was refused ({error.code} {error.reason})", "check the address") from None
    except urllib.error.URLError as error:
        raise unreachable(url, error.reason) from None
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(_words(error)) from None


def _agree(response: http.client.HTTPResponse, part: _Part) -> tuple[int, int]:
    """Where the answer starts, and the whole file's length (0: not stated); starts `part` over if it must."""
    etag = response.headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    have = part.size()
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        same = span and int(span[1]) == have and part.total in (0, int(span[2]))
        if not span or not same or validator not in ("", part.validator):
            part.drop()
            raise _InterruptedError("the file has changed on the server")
        return have, int(span[2])
    total = int(response.headers.get("Content-Length") or 0)
    part.drop()
    part.describe(validator, total)
    return 0, total


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(_words(error)) from None


def unreachable(url: str, reason: object) -> HandlensError:
    """The error for a server that gives no answer at all: `reason` is an exception or words."""
    host = urllib.parse.urlsplit(url).netloc or url
    return HandlensError(f"{host} could not be reached ({_words(reason)})", "check the network and try again")


def _words(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return (str(reason).strip() or type(reason).__name__).splitlines()[0]


def _name_in(url: str) -> str:
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 1)[-1]
    name = re.sub(r"[^\w.+-]", "_", last).lstrip(".")
    if not name:
        raise HandlensError(f"{url!r} does not name a file", "check the address")
    return name


def _is_right(path: Path, wanted: _Wanted) -> bool:
    if not path.is_file() or wanted.size_bytes not in (None, path.stat().st_size):
        return False
    return not wanted.sha256 or files.sha256_of(path).startswith(wanted.sha256)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a lock that only one process has at a time; the system lifts it when that process dies."""
    path = target.with_name(f".{target.name}.lock")
    while True:
        file = path.open("a+b")
        _lock(file)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # the holder before us has removed it: take the one there now
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file: it stays, empty
            path.unlink()
        file.close()


def _lock(file: IO[Any]) -> None:
    """Wait for the lock on an open file. A file system without locks goes without."""
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EDEADLK):  # those of a lock that another has
                    return
            time.sleep(0.5)
    else:
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
