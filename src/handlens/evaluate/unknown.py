"""None of these: a score of how much a photo is like the classes, and the threshold below which it is none of them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import numpy as np

from handlens.errors import HandlensError

Kind = Literal["max-softmax", "energy"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection:
    """Which score decides, and from where on a photo counts as one of the classes.

    kind:      "max-softmax": the largest probability (Hendrycks and Gimpel 2017);
               "energy": log(sum(exp(logits))), without the sign of Liu et al. 2020, so that high means known.
    threshold: a photo whose score is below it is unknown.
    """

    kind: Kind
    threshold: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise HandlensError(f"the score of unknown photos is {self.kind!r}, expected {' or '.join(KINDS)}")
        if not np.isfinite(self.threshold):
            raise HandlensError(f"the threshold of unknown photos is {self.threshold}, expected a finite number")

    def scores(self, probabilities: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """(B, K) and (B, K), as a classifier's `infer` gives them -> float64 (B,), higher: more like the classes."""
        if self.kind == "max-softmax":
            return probabilities.max(1).astype(np.float64)
        logits = logits.astype(np.float64)
        largest = logits.max(1)
        sums: np.ndarray = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
        return sums

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return dataclasses.asdict(self)
