"""onnxruntime: an ONNX file as a function of uint8 photos."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from handlens.bundle import FACTS_KEY
from handlens.errors import missing_extra
from handlens.run.artifact import Infer, cannot_load

FILE = "model.onnx"


def start(artifact: Mapping[str, bytes], threads: int = 0) -> tuple[Infer, str | None]:
    """The network as a function, and the facts that the file carries or None.

    uint8 RGB (B, H, W, 3), any B -> (probabilities, logits), float32 (B, K). Raises HandlensError when the runtime is
    missing or refuses the file. `threads` 0 means one a core.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing_extra("onnx", "onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # 0: a thread a core
    options.log_severity_level = 4  # what fails is raised
    # Waiting threads sleep: spinning ones cost a whole core, and slow down whatever else runs here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(artifact[FILE], options, providers=["CPUExecutionProvider"])
        facts = session.get_modelmeta().custom_metadata_map.get(FACTS_KEY)
    except Exception as error:  # its exceptions have no base of their own
        raise cannot_load(f"onnxruntime {onnxruntime.__version__}", FILE, error) from error

    def infer(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities, logits = session.run(["probabilities", "logits"], {"photos": photos})
        return probabilities, logits

    return infer, facts


def start_shared(artifact: Mapping[str, bytes]) -> tuple[Infer, str | None]:
    """As `start`, for several threads that may call the function at once, each computing alone."""
    return start(artifact, 1)
