"""ExecuTorch: a .pte file as a function of uint8 photos. The one runtime that loads torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from handlens.bundle import FACTS_KEY
from handlens.errors import missing_extra
from handlens.run.artifact import Infer, cannot_load, check_photos, quiet

FILE = "model.pte"


def start(artifact: Mapping[str, bytes], threads: int = 0) -> tuple[Infer, str | None]:
    """The network as a function, and the facts that the file carries or None.

    uint8 RGB (B, H, W, 3), any B -> (probabilities, logits), float32 (B, K). Raises HandlensError when the runtime is
    missing or refuses the file. `threads` 0 means one a core; another number holds for all ExecuTorch networks of the
    process. At most as many photos as the file was exported for go through at once.
    """
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated inside it
            import torch
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
    except ImportError:
        raise missing_extra("executorch", "executorch") from None
    try:
        with quiet():
            running = portable_lib._threadpool_get_thread_count()  # makes them, which is reported to standard error
            if threads and threads != running:
                portable_lib._unsafe_reset_threadpool(threads)  # of the process: unsafe only while a network runs
            program = Runtime.get().load_program(artifact[FILE])
            forward: Any = program.load_method("forward")
            largest, height, width, _ = forward.metadata.input_tensor_meta(0).sizes()
            facts = None
            if FACTS_KEY in program.method_names:
                constant: Any = program.load_method(FACTS_KEY)
                facts = str(constant.execute([])[0])
    except (RuntimeError, LookupError, ValueError) as error:
        raise cannot_load("ExecuTorch", FILE, error) from error

    def infer(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_photos(photos, height, width)
        forward: Any = program.load_method("forward")  # the one above; the program holds the file and must outlive it
        # A copy: Pillow's arrays are read-only, which torch warns of, and others may lie in memory in another order.
        owned = torch.from_numpy(np.array(photos, order="C"))
        answers = [forward.execute([owned[first : first + largest]]) for first in range(0, len(owned), largest)]
        probabilities, logits = (torch.cat(parts).numpy() for parts in zip(*answers, strict=True))
        return probabilities, logits

    return infer, facts
