"""One training a folder: a lock of the system's, which ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from handlens.errors import HandlensError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_LOCK = ".training"  # in a run's folder while it is trained
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
_TRIES = 4


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run's folder for a training. Raises HandlensError as `check_alone`."""
    path = folder / _LOCK
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # such as of a file system without locks
            held = False
            while not held:
                file = stack.enter_context(path.open("ab"))
                _lock(file.fileno(), folder)
                # Else the training that had it before has removed the file in the meantime.
                held = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        try:
            yield
        finally:
            if sys.platform == "win32":  # which removes no open file
                stack.close()
            with contextlib.suppress(OSError):
                path.unlink()


def check_alone(folder: Path) -> None:
    """Raise HandlensError where a run is being trained by another process; file systems without locks do not tell."""
    with contextlib.suppress(OSError), (folder / _LOCK).open("r+b") as file:
        _lock(file.fileno(), folder)


def _lock(descriptor: int, folder: Path) -> None:
    for left in reversed(range(_TRIES)):  # one that only looks has it for a moment
        try:
            if sys.platform == "win32":
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            if not left:
                raise HandlensError(
                    f"{folder} is being trained by another process", "wait for it, or end that process"
                ) from None
        time.sleep(0.05)
