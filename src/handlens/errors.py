"""What a user sees when something is wrong: one sentence, and what to do next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence


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


def not_one_of(what: str, given: object, allowed: Sequence[str]) -> HandlensError:
    """The error for a word that is none of a few, such as `--mode haed`: it names them, and the nearest."""
    known = f"{', '.join(allowed[:-1])} or {allowed[-1]}" if len(allowed) > 1 else allowed[0]
    return HandlensError(f"{what} is {given!r}, expected {known}", did_you_mean(given, allowed, most=1))


def did_you_mean(given: object, known: Iterable[str], otherwise: str = "", most: int = 3) -> str:
    """The hint for a word that is none of the known ones: the `most` nearest of them, else `otherwise`.

    Those that begin with it come first, then those that hold it, the shortest first: of "mobilenetv3" MobileNetV3-Large
    and -Small.
    """
    import difflib  # only now: it is loaded by no command that goes well

    known, part = list(known), _bare(given)
    holding = [name for name in known if len(part) > 2 and part in _bare(name)]
    holding.sort(key=lambda name: (not _bare(name).startswith(part), len(name)))
    near = list(dict.fromkeys(holding + difflib.get_close_matches(str(given).lower(), known, most, cutoff=0.5)))[:most]
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def _bare(word: object) -> str:
    return str(word).lower().replace("_", "").replace("-", "")


def quoted(path: object) -> str:
    """A path as one word of a command to be typed, in the quotes that this system's command line takes."""
    if os.name == "nt":
        import subprocess  # only there

        return subprocess.list2cmdline([str(path)])
    return shlex.quote(str(path))


def counted(number: int, noun: str) -> str:
    """A number with its noun, for a sentence: 1 photo, 1,200 photos, 3 classes."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural if number != 1 else ''}"


def not_finite(what: str) -> HandlensError:
    """The error for a network whose `what` are NaN or infinite."""
    return HandlensError(f"the network gave {what} that are not finite", "its training diverged; train again")


def missing_extra(extra: str, package: str) -> NotHereError:
    """The error for an optional part of handlens that is not installed: it names the exact install command."""
    verb = "are" if " and " in package else "is"
    return NotHereError(f"this needs {package}, which {verb} not installed", f'pip install "handlens[{extra}]"')


def need(extra: str, packages: Mapping[str, str]) -> None:
    """Raise NotHereError unless each package's module can be found: before long work that would end at it.

    packages: the name of each module, by that of its package.
    """
    import importlib.util  # only now: hardly any command that answers at once needs it

    for package, module in packages.items():
        if importlib.util.find_spec(module) is None:
            raise missing_extra(extra, package)
