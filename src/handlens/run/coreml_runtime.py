"""Core ML: runs in apps on Apple's systems; here its file is read and not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

from handlens.bundle import FACTS_KEY
from handlens.errors import NotHereError
from handlens.run.artifact import cannot_load, no_facts

SUFFIX = ".mlmodel"  # of the network's description inside model.mlpackage
# Numbers of protobuf fields in Apple's Model.proto, from the outermost message to a text's name and value.
_DESCRIPTION, _METADATA, _USER_DEFINED, _NAME, _VALUE = 2, 100, 100, 1, 2


def start(artifact: Mapping[str, bytes], threads: int = 0) -> NoReturn:
    """Raises NotHereError: Core ML is not run from here."""
    raise NotHereError(
        "handlens does not run Core ML bundles, which are for apps on macOS and iOS",
        "use it in an app, or export --to onnx for this machine",
    )


def embedded(artifact: Mapping[str, bytes]) -> str:
    """The facts in the file's user-defined metadata. Raises HandlensError when there are none."""
    for name, content in artifact.items():
        if name.endswith(SUFFIX):
            try:
                for entry in _fields(content, _DESCRIPTION, _METADATA, _USER_DEFINED):
                    if next(_fields(entry, _NAME), b"").decode() == FACTS_KEY:
                        return next(_fields(entry, _VALUE), b"").decode()
            except (ValueError, IndexError) as error:
                raise cannot_load("handlens", name, error) from error
    raise no_facts("model.mlpackage")


def _fields(message: bytes, number: int, *inner: int) -> Iterator[bytes]:
    """The fields of that number in a protobuf message, or those of numbers further inside; texts and messages only."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 2:  # a length, then so many bytes
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("it ends too early")
            if key >> 3 == number:
                content = message[at : at + length]
                yield from _fields(content, *inner) if inner else [content]
            at += length
        elif kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"no protobuf message has a field of kind {kind}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (message[at] & 127) << shift
        at += 1
        if message[at - 1] < 128:
            return value, at
    raise ValueError("a number without end")
