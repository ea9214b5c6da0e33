"""ExecuTorch: one .pte file that runs on XNNPACK, by executorch."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from handlens.bundle import FACTS_KEY
from handlens.export.converting import converting
from handlens.nets import Net
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Preprocess

FILE = "model.pte"
LARGEST_BATCH = 16  # memory for this many photos is set aside in whatever runs the file


def convert(net: Net, preprocess: Preprocess, facts: str, float16: bool = False) -> dict[str, bytes]:
    """{"model.pte": ...}: photos uint8 (batch, H, W, 3) -> (probabilities, logits) float32 (batch, K), batch 1 to 16.

    The largest batch, 16 or 17, is the size of the input in the file's metadata; the runtime refuses more at once.
    Method "forward" is the network, method "handlens" gives the facts.
    Raises HandlensError naming the operation that ExecuTorch cannot express. `float16` is refused before, by
    `check_target`.
    """
    with converting("executorch", net):
        return {FILE: lower(export(FromPixels(net, preprocess).eval(), preprocess), facts)}


def export(network: torch.nn.Module, preprocess: Preprocess) -> torch.export.ExportedProgram:
    """The program of a module that takes photos, for any batch from 1 to LARGEST_BATCH."""
    # Traced with fewer photos the file takes one less than the bound; traced with the bound itself, no other number.
    photos = torch.zeros(LARGEST_BATCH, preprocess.image_px, preprocess.image_px, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH + 1)
    with _InOnePiece():
        return torch.export.export(network, (photos,), dynamic_shapes=({0: batch},))


class _InOnePiece(TorchFunctionMode):
    """Operations in the forms that XNNPACK has: what it has not splits the network, and runs slowly.

    It permutes float32 only, averages maps only if they keep their dimensions, takes slices but no chunks (which fix
    the batch, too) and no flips, and a batch of unknown size in a new shape only as -1.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: Any = args[0] if args else None
        kwargs = kwargs or {}
        if func is torch.Tensor.permute and given.dtype == torch.uint8:
            return given.to(torch.float32).permute(*args[1:])
        if func in (torch.mean, torch.Tensor.mean) and args[1:] == ((2, 3),) and not kwargs:
            return given.mean((2, 3), keepdim=True).view(-1, given.shape[1])
        if func in (torch.chunk, torch.Tensor.chunk) and 1 in (kwargs.get("dim"), *args[2:]):
            step = -(-given.shape[1] // args[1])
            return tuple(given[:, start : start + step] for start in range(0, given.shape[1], step))
        if func is torch.Tensor.flip and args[1:] == (1,):
            return torch.cat([given[:, place : place + 1] for place in reversed(range(given.shape[1]))], 1)
        result = func(*args, **kwargs)
        if func in _SHAPED and not any(isinstance(size, torch.SymInt) for size in result.shape[1:]):
            return given.contiguous().view(-1, *result.shape[1:])
        return result


_SHAPED = (torch.flatten, torch.Tensor.flatten, torch.unflatten, torch.Tensor.unflatten, torch.Tensor.reshape)


def lower(program: torch.export.ExportedProgram, facts: str) -> bytes:
    """The .pte file of a program: what XNNPACK can run is given to it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={FACTS_KEY: facts}
    )
    return bytes(lowered.to_executorch().buffer)
