"""What the runtimes have in common: the function that each gives, and how each says that it cannot."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np

from handlens.errors import HandlensError

# uint8 RGB (B, image_px, image_px, 3), any B -> (probabilities, logits), float32 (B, K); one call at a time
Infer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# Held while the process's standard streams are shut: a second thread would keep the shut one, and put that back.
SHUTTING = threading.RLock()
MOST_THREADS = 1024  # of very many more runtimes and OpenMP crash, or hold gigabytes


def cannot_load(runtime: str, file: str, error: Exception) -> HandlensError:
    """The error for an artifact that its runtime refuses."""
    return HandlensError(f"{runtime} cannot load {file} ({brief(error)})", "export it again")


def no_facts(file: str) -> HandlensError:
    """The error for an artifact without the facts that every exporter puts into it."""
    return HandlensError(f"{file} carries no facts of handlens", "make it by `handlens export`")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what is written to standard error, also by libraries in C++, which greet and report there.

    It is shut for the whole process: for loading only. One thread after another may do so (`SHUTTING`).
    """
    with SHUTTING:
        try:
            kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        except OSError:  # there is no standard error
            yield
            return
        try:
            if sys.stderr:
                sys.stderr.flush()
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def check_photos(photos: np.ndarray, height: int, width: int) -> None:
    """Raise HandlensError unless they are uint8 (B, height, width, 3): some runtimes answer others, with nonsense."""
    is_array = isinstance(photos, np.ndarray)
    if not is_array or photos.dtype != np.uint8 or photos.shape[1:] != (height, width, 3):
        given = f"{photos.dtype} {photos.shape}" if is_array else f"a {type(photos).__name__}"
        raise HandlensError(
            f"the network takes photos as a uint8 array (B, {height}, {width}, 3), these are {given}",
            "stack what `preprocess.load` gives",
        )


def check_threads(threads: int) -> None:
    """Raise HandlensError unless `threads` is a number that a runtime takes."""
    if not isinstance(threads, int) or not 0 <= threads <= MOST_THREADS:
        raise HandlensError(f"threads is {threads!r}, expected 1 to {MOST_THREADS}, or 0 for the runtime's choice")


def brief(error: Exception) -> str:
    """An error of a runtime, which may be a page long, on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-150:]}"
