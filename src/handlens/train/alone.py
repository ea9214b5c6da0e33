"""One training a folder: a lock of the system's, which ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

from handlens.errors import HandlensError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_LOCK = ".training"  # in a run's folder while it is trained
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run's folder for a training. Raises HandlensError as `check_alone`."""
    path = folder / _LOCK
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # such as of a file system without locks
            _lock(stack.enter_context(path.open("ab")).fileno(), folder)
        try:
            yield
        finally:
            stack.close()  # Windows removes no open file
            with contextlib.suppress(OSError):
                path.unlink()


def check_alone(folder: Path) -> None:
    """Raise HandlensError where a run is being trained by another process; file systems without locks do not tell."""
    with contextlib.suppress(OSError), (folder / _LOCK).open("r+b") as file:
        _lock(file.fileno(), folder)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise HandlensError(
                f"{folder} is being trained by another process", "wait for it, or end that process"
            ) from None
        raise
