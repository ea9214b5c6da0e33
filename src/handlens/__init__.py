"""handlens: from a folder of labelled photos to a small image classifier made for phones.

The public names are loaded when they are first used: `import handlens` loads neither torch nor numpy.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# onnxruntime and OpenVINO report their use to their makers unless they are kept from it before they are imported. The
# second one has no switch for it, and goes without where its package cannot be imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

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
