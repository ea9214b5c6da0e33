"""What a user sees when something is wrong: one sentence, and what to do next."""

from __future__ import annotations


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


def missing_extra(extra: str, package: str) -> NotHereError:
    """The error for an optional part of handlens that is not installed: it names the exact install command."""
    verb = "are" if " and " in package else "is"
    return NotHereError(f"this needs {package}, which {verb} not installed", f"pip install 'handlens[{extra}]'")
