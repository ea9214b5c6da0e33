"""OpenVINO: an .xml and a .bin file as a function of uint8 photos."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from handlens.bundle import FACTS_KEY
from handlens.errors import missing_extra
from handlens.run.artifact import Infer, cannot_load, check_photos

FILE, WEIGHTS = "model.xml", "model.bin"
_MAKING_CORE = threading.Lock()
ARITHMETIC = ("runtime_options", "INFERENCE_PRECISION_HINT")  # where a file says "bf16"; OpenVINO itself passes over it


def start(artifact: Mapping[str, bytes], threads: int = 0) -> tuple[Infer, str | None]:
    """The network as a function, and the facts that the file carries or None.

    uint8 RGB (B, H, W, 3), any B -> (probabilities, logits), float32 (B, K). Raises HandlensError when the runtime is
    missing or refuses the file. `threads` 0 means OpenVINO's own choice, one a core. It computes in float32, but for
    files that ask for bfloat16 on processors that have it.
    """
    # More streams than one give other answers in INT8, without a word (OpenVINO 2026.4, files of any batch size).
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled, sides, facts = _compile(artifact, settings)
    return _infer(compiled.create_infer_request(), sides), facts


def start_shared(artifact: Mapping[str, bytes]) -> tuple[Infer, str | None]:
    """As `start`, for several threads that may call the function at once: each has a network of its own."""
    own, starting = threading.local(), threading.Lock()
    first, facts = start(artifact, 1)
    made = [first]  # for the first thread

    def infer(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not hasattr(own, "infer"):
            with starting:
                own.infer = made.pop() if made else start(artifact, 1)[0]
        answers: tuple[np.ndarray, np.ndarray] = own.infer(photos)
        return answers

    return infer, facts


def computes_bfloat16() -> bool:
    """Whether this processor does. Raises HandlensError when the runtime is missing."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _compile(artifact: Mapping[str, bytes], settings: Mapping[str, Any]) -> tuple[Any, tuple[int, int], str | None]:
    """The network ready to run, its photos' height and width, and the facts that the file carries or None."""
    openvino = _openvino()
    try:
        model = core().read_model(artifact[FILE], artifact[WEIGHTS])
        bfloat16 = _said(model, ARITHMETIC) == "bf16" and computes_bfloat16()
        exact = {
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",  # its own choice is bfloat16 for any file
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # else it rounds what meets eight-bit weights, too
            "ENABLE_CPU_PINNING": False,  # else networks of one thread each all wait for the same core
        }
        height, width = (model.input("photos").partial_shape[side].get_length() for side in (1, 2))
        compiled = core().compile_model(model, "CPU", {**settings, **exact})
        for name in ("probabilities", "logits"):
            compiled.output(name)
    except RuntimeError as error:
        raise cannot_load(f"OpenVINO {openvino.__version__.partition('-')[0]}", FILE, error) from error
    return compiled, (height, width), _said(model, (FACTS_KEY,))


def _infer(request: Any, sides: tuple[int, int]) -> Infer:
    outputs = [request.get_compiled_model().output(name) for name in ("probabilities", "logits")]

    def infer(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_photos(photos, *sides)
        answers = request.infer({"photos": photos})
        return answers[outputs[0]].copy(), answers[outputs[1]].copy()  # the request's own memory, used again

    return infer


def core() -> Any:
    """OpenVINO's core, one for the process and for ever. Raises HandlensError when the runtime is missing.

    On processors with AMX a core gives the thread that makes it another stack for signals, and takes it back only where
    it ends in that same thread: after any other end the next Ctrl-C was a segmentation fault (OpenVINO 2026.4).
    """
    with _MAKING_CORE:
        return _core()


@functools.cache
def _core() -> Any:
    return _openvino().Core()


def _openvino() -> Any:
    try:
        import openvino
    except ImportError:
        raise missing_extra("openvino", "openvino") from None
    # Made once before there are threads: when two of them are the first to do it, they wait for each other for ever.
    openvino.Tensor(np.zeros(1, np.uint8))
    return openvino


def _said(model: Any, name: tuple[str, ...]) -> str | None:
    """A value of the file's runtime info, or None."""
    return str(model.get_rt_info(list(name)).value) if model.has_rt_info(list(name)) else None
