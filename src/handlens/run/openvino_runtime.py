"""OpenVINO: an .xml and a .bin file as a function of uint8 photos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from handlens.bundle import FACTS_KEY
from handlens.errors import missing_extra
from handlens.run.artifact import Infer, cannot_load, check_photos

FILE, WEIGHTS = "model.xml", "model.bin"


def start(artifact: Mapping[str, bytes], threads: int = 0) -> tuple[Infer, str | None]:
    """The network as a function, and the facts that the file carries or None.

    uint8 RGB (B, H, W, 3), any B -> (probabilities, logits), float32 (B, K). Raises HandlensError when the runtime is
    missing or refuses the file. `threads` 0 means OpenVINO's own choice, one a core.
    """
    openvino, core, model = _read(artifact)
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",  # else it takes bfloat16 on processors that have it
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # else it rounds what meets eight-bit weights, too
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        height, width = (model.input("photos").partial_shape[side].get_length() for side in (1, 2))
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        outputs = [request.get_compiled_model().output(name) for name in ("probabilities", "logits")]
    except RuntimeError as error:
        raise cannot_load(f"OpenVINO {openvino.__version__.partition('-')[0]}", FILE, error) from error

    def infer(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_photos(photos, height, width)
        answers = request.infer({"photos": photos})
        return answers[outputs[0]].copy(), answers[outputs[1]].copy()  # the request's own memory, used again

    return infer, _facts(model)


def _read(artifact: Mapping[str, bytes]) -> tuple[Any, Any, Any]:
    """The package, its core, and the model."""
    try:
        import openvino
    except ImportError:
        raise missing_extra("openvino", "openvino") from None
    core = openvino.Core()
    try:
        return openvino, core, core.read_model(artifact[FILE], artifact[WEIGHTS])
    except RuntimeError as error:
        raise cannot_load(f"OpenVINO {openvino.__version__.partition('-')[0]}", FILE, error) from error


def _facts(model: Any) -> str | None:
    return str(model.get_rt_info([FACTS_KEY]).value) if model.has_rt_info([FACTS_KEY]) else None
