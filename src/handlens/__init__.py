"""handlens: from a folder of labelled photos to a small image classifier that runs on a phone.

The public names are loaded when they are first used: `import handlens` loads neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {  # name: module that defines it
    "HandlensError": "handlens.errors",
    "Preprocess": "handlens.preprocess",
    "load": "handlens.run",
    "fit": "handlens.train",
}
__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from handlens.errors import HandlensError as HandlensError
    from handlens.preprocess import Preprocess as Preprocess
    from handlens.run import load as load
    from handlens.train import fit as fit


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'handlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
