"""A network run without memory: every operation gives its shapes only, but as a CPU's tensors would come out."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


class Fakes:
    """Copies of networks, and photos, that hold shapes and no values; used within `with fakes.running():`.

    Unlike torch's meta device these say that they are on the CPU: operations choose what they choose there (fused
    attention, say), and a module that makes tensors of its own finds them beside its inputs. An operation that needs
    values (`if x.sum() > 0`) raises an error.
    """

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def copy_of(self, net: nn.Module) -> nn.Module:
        """A copy of the network, itself untouched; of any device and of torch's meta device too."""
        with self._mode:
            memo: dict[int, Any] = {id(p): nn.Parameter(_like(p), p.requires_grad) for p in net.parameters()}
            memo |= {id(buffer): _like(buffer) for buffer in net.buffers()}
        return copy.deepcopy(net, memo)

    def photos(self, net: nn.Module, number: int, image_px: int) -> Tensor:
        """Normalised photos (number, 3, image_px, image_px), of the number type of the network's weights."""
        dtype = next((value.dtype for value in net.parameters() if value.is_floating_point()), torch.float32)
        with self._mode:
            return torch.empty(number, 3, image_px, image_px, dtype=dtype)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """What runs within computes shapes. Attention is run by its parts: torch's fused path has no shapes."""
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        log = logging.getLogger("torch._subclasses.fake_tensor")  # it would print what is raised, too
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            with self._mode:
                yield
        finally:
            log.setLevel(level)
            torch.backends.mha.set_fastpath_enabled(fused)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)
