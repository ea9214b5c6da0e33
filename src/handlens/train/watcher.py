"""What a training tells while it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handlens.train import loop


class Watcher:
    """What `fit` tells while it works; override what you want to show."""

    def note(self, text: str) -> None:
        """A sentence on what was found, chosen or left out."""

    def started(self, folder: Path) -> None:
        """The run's folder has been made, and what is in it can be resumed."""

    def count(self, what: str, done: int, total: int) -> None:
        """Progress of work that is counted: photos looked at, features computed, photos judged."""

    def step(self, step: loop.Step) -> None:
        """After each step of training."""

    def epoch(self, log: list[dict[str, float]]) -> None:
        """After each epoch, with a row for each so far."""


def counter(watcher: Watcher, what: str) -> Any:
    """`watcher.count` of one kind of work."""
    return lambda done, total: watcher.count(what, done, total)
