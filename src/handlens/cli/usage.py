"""What is wrong with a command as it was typed, in one sentence with what to do next."""

from __future__ import annotations

import re
from typing import Any

from handlens.errors import HandlensError, did_you_mean, not_one_of

_KINDS = {"int_parsing": "a whole number", "int_from_float": "a whole number", "float_parsing": "a number"}
_BOUNDS = {"greater_than_equal": "at least {ge}", "less_than_equal": "at most {le}"}


def wrong_usage(error: Any) -> HandlensError:
    """An error of typer's parser in our words; its classes are private to it, so that its fields tell them apart."""
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context else "handlens"
    look = f"`{command} --help` shows what it takes"
    told = error.format_message()
    named, *quoted = re.findall(r"'([^']*)'", told) or [""]
    if told.startswith("No such command"):
        return HandlensError(
            f"there is no command {named}",
            did_you_mean(named, context.command.commands, "`handlens --help` lists them", 1),
        )
    if hasattr(error, "possibilities"):
        options = [name for param in context.command.params for name in (*param.opts, *param.secondary_opts)]
        return HandlensError(
            f"{command} has no option {error.option_name}", did_you_mean(error.option_name, options, look, 1)
        )
    if hasattr(error, "option_name"):
        if "not take" in told:
            return HandlensError(f"{error.option_name} takes no value", "leave out what follows it")
        return HandlensError(f"{error.option_name} needs a value", f"give one: {error.option_name} VALUE")
    if told.startswith("Missing"):
        return HandlensError(f"{command} needs {named}", look)
    if " is not one of " in told:
        return not_one_of(named, quoted[0], quoted[1:])
    if told.startswith("Invalid value for") and (first := _first(error)):
        expected = _KINDS.get(first["type"]) or _BOUNDS.get(first["type"], "").format(**first.get("ctx", {}))
        given = f"{named} is {str(first['input'])!r}"
        return HandlensError(f"{given}, expected {expected}" if expected else f"{given}: {first['msg']}", look)
    if extra := re.search(r"unexpected extra arguments? ?(?:\(s\) )?\((.*)\)", told):
        hint = f"put a path with spaces into quotes; {look}"
        return HandlensError(f"{command} was given more than it takes: {extra[1]}", hint)
    return HandlensError(told[:1].lower() + told[1:].rstrip("."), look)


def _first(error: Any) -> dict[str, Any] | None:
    """What pydantic found wrong first, where the error comes from it: "type", "input", "msg" and perhaps "ctx"."""
    found: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    return found[0] if found else None
