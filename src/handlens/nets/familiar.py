"""How much a photo looks like those of the classes, and logits that say so."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from handlens.errors import HandlensError

if TYPE_CHECKING:
    from handlens.nets.layers import Net


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Familiar:
    """Directions in which a network sees the photos of its classes, and how alike a photo has to be.

    depth:   the module of `Net.classifier` that reads the vector which is compared.
    centres: float32 (N, F), each of length 1.
    slope, offset: slope * cosine + offset is the highest energy, log(sum(exp(logits))), that a photo may have whose
             greatest cosine with a centre is `cosine`.

    A photo with more has all its logits lowered by what is too much. That changes no probability, and makes the energy
    the lower of two scores: a photo counts as known only where its answer is clear and it looks like the classes.
    """

    depth: int
    centres: Tensor
    slope: float
    offset: float

    def lowered(self, vector: Tensor, logits: Tensor, centres: Tensor) -> Tensor:
        """Logits (B, K), lowered where the vector (B, F) is unlike the centres, which are given on its device."""
        length = vector.square().sum(1, keepdim=True).clamp(min=1e-12).sqrt()
        cosine = F.linear(vector, centres).amax(1, keepdim=True) / length
        largest = logits.amax(1, keepdim=True)
        energy = largest + (logits - largest).exp().sum(1, keepdim=True).log()
        return logits - (energy - (self.slope * cosine + self.offset)).relu()

    def check(self, net: Net) -> None:
        """Raise HandlensError where it does not belong to the network."""
        numbers = (self.slope, self.offset)
        if (
            type(self.depth) is not int
            or not 0 <= self.depth < len(net.classifier)
            or not all(type(number) is float and math.isfinite(number) for number in numbers)
            or not isinstance(self.centres, Tensor)
            or self.centres.ndim != 2
            or not len(self.centres)
            or self.centres.dtype != torch.float32
        ):
            raise HandlensError("what is familiar to the network is damaged")
        try:
            net.classifier[self.depth :].eval()(self.centres[:1])
        except RuntimeError:
            raise HandlensError("what is familiar to the network has vectors of another length") from None

    def to_dict(self) -> dict[str, Any]:
        """All but the centres, as JSON-ready values."""
        return {"depth": self.depth, "slope": self.slope, "offset": self.offset}
