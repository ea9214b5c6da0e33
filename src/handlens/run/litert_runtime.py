"""LiteRT: a .tflite file as a function of uint8 photos."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from handlens import cores
from handlens.bundle import FACTS_KEY
from handlens.errors import missing_extra
from handlens.run.artifact import Infer, cannot_load, no_facts, quiet

FILE = "model.tflite"


def start(artifact: Mapping[str, bytes], threads: int = 0) -> tuple[Infer, str | None]:
    """The network as a function, and the facts that the file carries or None.

    uint8 RGB (B, H, W, 3), any B -> (probabilities, logits), float32 (B, K). Raises HandlensError when the runtime is
    missing or refuses the file. `threads` 0 means one a core. Photos go through one by one.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise missing_extra("litert", "ai-edge-litert") from None
    try:
        with quiet():
            interpreter = Interpreter(model_content=artifact[FILE], num_threads=threads or cores.available())
            photo = interpreter.get_input_details()[0]
            if photo["shape"][0] != 1:
                interpreter.resize_tensor_input(photo["index"], [1, *photo["shape"][1:]])
            interpreter.allocate_tensors()
            outputs = _outputs(interpreter)
    except (ValueError, RuntimeError, LookupError) as error:
        raise cannot_load("LiteRT", FILE, error) from error

    def infer(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answers: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for index in range(len(photos)):  # another batch size would lay out and pack all weights again
            interpreter.set_tensor(photo["index"], photos[index : index + 1])
            interpreter.invoke()
            for rows, output in zip(answers, outputs, strict=True):
                rows.append(interpreter.get_tensor(output))
        return np.concatenate(answers[0]), np.concatenate(answers[1])

    return infer, _facts(artifact[FILE])


def start_shared(artifact: Mapping[str, bytes]) -> tuple[Infer, str | None]:
    """As `start`, for several threads that may call the function at once: each has an interpreter of its own."""
    own, loading = threading.local(), threading.Lock()

    def infer(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not hasattr(own, "infer"):
            with loading:  # shuts standard error for the whole process
                own.infer = start(artifact, 1)[0]
        answers: tuple[np.ndarray, np.ndarray] = own.infer(photos)
        return answers

    return infer, embedded(artifact)


def embedded(artifact: Mapping[str, bytes]) -> str:
    """The facts in the file's metadata, also where its interpreter fails. Raises HandlensError when there are none."""
    try:
        facts = _facts(artifact[FILE])
    except ImportError:
        raise missing_extra("litert", "ai-edge-litert") from None
    if facts is None:
        raise no_facts(FILE)
    return facts


def _outputs(interpreter: Any) -> list[int]:
    """The indices of the tensors of probabilities and of logits."""
    signatures = interpreter.get_signature_list()
    if not signatures:
        return [output["index"] for output in interpreter.get_output_details()]
    details = interpreter.get_signature_runner(next(iter(signatures))).get_output_details()
    names = ("probabilities", "logits") if "probabilities" in details else sorted(details)[:2]
    return [details[name]["index"] for name in names]


def _facts(data: bytes) -> str | None:
    """The metadata entry named handlens. Raises ImportError without LiteRT."""
    from ai_edge_litert.schema_py_generated import Model

    try:
        model = Model.GetRootAs(data)
        for index in range(model.MetadataLength()):
            entry = model.Metadata(index)
            if entry.Name() == FACTS_KEY.encode():
                return bytes(model.Buffers(entry.Buffer()).DataAsNumpy()).rstrip(b"\0").decode()
    except Exception as error:  # of numpy, struct and others: what a reader of a damaged file happens upon
        raise cannot_load("LiteRT", FILE, error) from error
    return None
