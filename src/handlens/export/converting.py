"""Where other projects' converters run: in silence, what they change put back, errors that name the operation."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import platform
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import torch
from torch import nn

from handlens.errors import HandlensError, missing_extra
from handlens.files import disk_error
from handlens.run.artifact import SHUTTING

_NEEDED = {  # what makes a target's files and runs them: the module of each package
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    "litert": {"litert-torch": "litert_torch", "ai-edge-litert": "ai_edge_litert"},
    "executorch": {"executorch": "executorch"},
    "openvino": {"openvino": "openvino"},
    "coreml": {"coremltools": "coremltools"},
}
_NEEDED_FOR_INT8 = {
    "litert": {"ai-edge-quantizer": "ai_edge_quantizer"},
    "executorch": {"torchao": "torchao"},
    "openvino": {"nncf": "nncf"},
}
_NOT_ON_WINDOWS = {
    "litert": ("LiteRT's converter", "Linux (WSL will do), and use the bundle here"),
    "coreml": ("Core ML's converter", "Linux (WSL will do) or macOS"),
}
_OPERATION = (  # how the converters' errors name the operation that they cannot express
    r"\b((?:aten|prims|higher_order)(?:\.|::)\w+(?:\.[A-Za-z]\w*)?)",
    r"convert function for op '(\w+)'",
    r"Unsupported fx node (\w+)",
)


def check_installed(target: str, int8: bool = False) -> None:
    """Raise HandlensError unless what makes a target's files can be found: before long work that would end at it."""
    for package, module in (_NEEDED[target] | (_NEEDED_FOR_INT8.get(target, {}) if int8 else {})).items():
        if importlib.util.find_spec(module) is None:
            raise _not_installed(target, package)


def versions(target: str, int8: bool = False) -> dict[str, str]:
    """The installed versions of what makes a target's files and runs them, by package, and of torch and Python."""
    found = {"python": platform.python_version()}
    for package in ("torch", *_NEEDED[target], *(_NEEDED_FOR_INT8.get(target, {}) if int8 else {})):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _not_installed(target: str, package: str) -> HandlensError:
    if target in _NOT_ON_WINDOWS and sys.platform == "win32":
        converter, others = _NOT_ON_WINDOWS[target]
        return HandlensError(f"{converter} does not run on Windows", f"export on {others}")
    return missing_extra(f"export-{target}", package)


@contextlib.contextmanager
def converting(target: str, net: nn.Module) -> Iterator[None]:
    """A block in which a converter is imported and run for `net`.

    What it prints, by Python or not, is dropped: both streams of the whole process are shut for that long, and other
    threads that would shut them wait. Afterwards loggers, warnings, environment variables and random numbers are as
    before. Raises HandlensError in place of whatever the converter raises, naming the operation that `target` cannot
    express.
    """
    try:
        with SHUTTING, _unchanged(), _silence():
            yield
    except HandlensError:
        raise
    except ModuleNotFoundError as error:
        raise _not_installed(target, error.name or target) from error
    except Exception as error:  # converters raise many kinds
        if isinstance(error, OSError) and isinstance(full := disk_error(error, tempfile.gettempdir()), HandlensError):
            raise full from error
        name = type(net).__name__
        if operation := _operation(error):
            message = f"{target} cannot express {operation}, an operation of {name}"
        else:
            message = f"{target} cannot express {name} ({_last(error)})"
        raise HandlensError(message, "choose another net or another --to") from error


def _operation(error: BaseException) -> str | None:
    """The first operation that the error, or one that led to it, names."""
    chain: BaseException | None = error
    while chain is not None:
        for pattern in _OPERATION:
            if found := re.search(pattern, str(chain)):
                return found[1].replace("::", ".")
        chain = chain.__cause__ or chain.__context__
    return None


def _last(error: BaseException) -> str:
    """The first line of what is at the bottom of a chain of errors, at most 200 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop what is written to the standard streams, also by libraries in C++; either may be closed."""
    kept = {}
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        if stream:
            stream.flush()
            with contextlib.suppress(OSError):
                kept[number] = os.dup(number)
    with tempfile.TemporaryFile() as nowhere, contextlib.ExitStack() as python:
        python.enter_context(contextlib.redirect_stdout(io.StringIO()))
        python.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            for number in kept:
                os.dup2(nowhere.fileno(), number)
            yield
        finally:
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """Put loggers, warnings, environment variables and random numbers back as they were."""
    loggers = [logging.root, *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger))]
    kept = [(x, x.level, x.propagate, x.disabled, list(x.handlers)) for x in loggers]
    environment = dict(os.environ)
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level, propagate, disabled, handlers in kept:
            logger.setLevel(level)
            logger.propagate, logger.disabled, logger.handlers = propagate, disabled, handlers
        os.environ.clear()
        os.environ.update(environment)
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        torch.set_rng_state(drawn[2])
