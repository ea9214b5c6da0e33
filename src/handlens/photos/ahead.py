"""Photos looked at by another process while this one is busy with a single core."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

from handlens import cores
from handlens.errors import HandlensError
from handlens.photos.examine import examine
from handlens.photos.scan import scan


class _StoppedError(Exception):
    pass


@contextlib.contextmanager
def looking_ahead(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Within it, another process looks at the photos of a folder: what it sees is in the cache for who asks later.

    It is meant for the seconds that importing torch takes, which threads would share one core with. Nothing is told of
    what goes wrong there, as it comes up again when the photos are looked at.
    """
    other = None
    if os.path.isdir(folder) and cores.available() > 1 and sys.executable:
        with contextlib.suppress(OSError):
            other = subprocess.Popen(
                # -P: not the modules that may lie in the current folder
                [sys.executable, "-P", "-m", "handlens.photos.ahead", os.fspath(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
    try:
        yield
    finally:
        if other:
            other.communicate()  # ends its input, by which it stops


def _look(folder: str) -> None:
    """Look at photos until the standard input ends, as it does too when the process that began this one is gone."""
    decoding, stopped = threading.Event(), threading.Event()

    def wait() -> None:
        os.read(0, 1)  # not by `sys.stdin`, which is locked meanwhile, and could not be closed at the end
        stopped.set()
        if not decoding.is_set():  # nothing would be kept: no one is to wait for a slow drive, or a long search
            os._exit(0)

    threading.Thread(target=wait, daemon=True).start()

    def progress(done: int, total: int) -> None:
        decoding.set()
        if stopped.is_set():
            raise _StoppedError

    with contextlib.suppress(_StoppedError, HandlensError):
        findings = examine(scan(folder), progress)
        decoding.clear()
        findings.near_duplicates(progress)


if __name__ == "__main__":
    _look(sys.argv[1])
