"""What a user sees when something is wrong: one sentence, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from collections.abc import Sequence


class HandlensError(Exception):
    """An error that its user can mend.

    `message` says what was given and what was expected, in one sentence without a full stop; `hint` says what to
    do next. The command line prints both on one line and exits with code 2, without a traceback.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class PhotoError(HandlensError):
    """A photo that cannot be read: broken, truncated, not a photo, or too large."""


class NotHereError(HandlensError):
    """Something optional that this machine lacks: a part that is not installed, or that its system does not have."""


def not_one_of(what: str, given: str, allowed: Sequence[str]) -> HandlensError:
    """The error for a word that is none of a few, such as `--mode haed`: it names them, and the nearest."""
    import difflib  # only now: it is loaded by no command that goes well

    near = difflib.get_close_matches(given.lower(), allowed, 1, cutoff=0.5)
    known = f"{', '.join(allowed[:-1])} or {allowed[-1]}" if len(allowed) > 1 else allowed[0]
    return HandlensError(f"{what} is {given!r}, expected {known}", f"did you mean {near[0]}?" if near else "")


def missing_extra(extra: str, package: str) -> NotHereError:
    """The error for an optional part of handlens that is not installed: it names the exact install command."""
    verb = "are" if " and " in package else "is"
    return NotHereError(f"this needs {package}, which {verb} not installed", f"pip install 'handlens[{extra}]'")


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The hint for a word that is none of the known ones: those that look like it, else `otherwise`."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def not_one_of(what: str, given: object, words: Iterable[str]) -> HandlensError:
    """The error for a value that has to be one of a few words."""
    words = tuple(words)
    return HandlensError(f"{what} is {given!r}, expected {' or '.join(words)}", did_you_mean(str(given), words))
