"""Bytes: what lives at the worst moment of a pass, and what the weights take in a file."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from handlens.cost.fakes import Fakes
from handlens.nets import Net


def peak_inference_bytes(net: nn.Module, image_px: int) -> int:
    """Bytes of activations that live at the worst operation of a forward pass in evaluation, one photo, float32.

    As PyTorch's eager mode holds them: every tensor is counted from the operation that makes it until the last
    reference to it is gone (also those that a caller's variable keeps), in-place operations make none, and views
    share what they view. The photo is included; weights, and the work space within an operation, are not. A runtime
    that plans its memory ahead needs less.
    """
    fakes = Fakes()
    fake = fakes.copy_of(net).eval()
    photo = fakes.photos(net, 1, image_px)
    with fakes.running(), torch.no_grad(), Lives() as lives:
        fake(photo)
    return _size(photo) + lives.peak_bytes()


def peak_training_bytes(net: nn.Module, image_px: int) -> int:
    """Bytes of activations per photo that live at the worst operation of a forward and backward pass, float32.

    Half of what two photos take, for batch norm in training refuses 1x1 maps of one. Counted as in
    `peak_inference_bytes`, with what autograd saves for the backward pass and the gradients of activations, and with
    auxiliary classifiers where the network has some. Weights, their gradients and the optimiser's state are not
    counted: they do not grow with the batch.
    """
    fakes = Fakes()
    fake = fakes.copy_of(net).train()
    for parameter in fake.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    photos = fakes.photos(net, 2, image_px)
    with fakes.running(), torch.enable_grad(), Lives() as lives:
        logits, auxiliary = fake.forward_train(photos) if isinstance(fake, Net) else (fake(photos), [])
        loss = sum(output.sum() for output in tree_leaves((logits, auxiliary)) if isinstance(output, Tensor))
        del logits, auxiliary
        assert isinstance(loss, Tensor)
        torch.autograd.backward(loss)
    gradients = [parameter.grad for parameter in fake.parameters() if parameter.grad is not None]
    return (_size(photos) + lives.peak_bytes(without=gradients)) // 2


class WeightBytes(NamedTuple):
    """Bytes of a network's weights by number format."""

    float32: int
    float16: int
    int8: int


def weight_bytes(net: nn.Module) -> WeightBytes:
    """Bytes that a network's weights take in float32, float16 and int8.

    float32, float16: all parameters and floating-point buffers (batch norm's running mean and variance).
    int8: for inference, as the quantisers of mobile runtimes write it: auxiliary classifiers, which only training runs,
    are left out; batch norms are folded into what comes before them and gone; every matrix and filter bank (a parameter
    of two, four or five dimensions) takes one byte a value, with a float32 scale and an int32 bias for each output
    channel; all else (tables of tokens, other norms) stays float32.
    """
    parameters = list(net.parameters())
    values = sum(tensor.numel() for tensor in [*parameters, *net.buffers()] if tensor.is_floating_point())
    int8 = 0
    auxiliary = net.auxiliary() if isinstance(net, Net) else []
    counted = {id(value) for head in auxiliary for value in head.parameters()}
    for module in net.modules():
        own = [value for value in module.parameters(recurse=False) if id(value) not in counted]
        counted |= {id(value) for value in own}
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        matrices = [value for value in own if value.ndim in (2, 4, 5)]
        int8 += sum(value.numel() + (4 + 4) * _outputs(module, value) for value in matrices)
        biases = sum(_outputs(module, value) for value in matrices)
        rest = sum(value.numel() for value in own) - sum(value.numel() for value in matrices)
        int8 += 4 * (rest - min(rest, biases) if matrices else rest)
    return WeightBytes(4 * values, 2 * values, int8)


def _outputs(module: nn.Module, weight: Tensor) -> int:
    """Output channels of a matrix or filter bank."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return weight.shape[1] * module.groups
    return weight.shape[0]


class Lives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory that operations make: from which operation to which each piece of it lives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._now = 0
        self._born: dict[weakref.ref[Any], int] = {}  # storage: the operation that made it
        self._lives: list[tuple[int, int, int]] = []  # (first operation, last operation, bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._now += 1
        known = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if id(storage) not in known and weakref.ref(storage) not in self._born:
                self._follow(storage)
        return out

    def _follow(self, storage: Any) -> None:
        size = storage.nbytes()

        def gone(reference: weakref.ref[Any]) -> None:
            self._lives.append((self._born.pop(reference), self._now, size))

        self._born[weakref.ref(storage, gone)] = self._now

    def peak_bytes(self, without: Iterable[Tensor] = ()) -> int:
        """The most bytes that lived at once; `without` these tensors, which still live."""
        left_out = {id(tensor.untyped_storage()) for tensor in without}
        living = [
            (born, self._now, storage.nbytes())
            for reference, born in self._born.items()
            if (storage := reference()) is not None and id(storage) not in left_out
        ]
        change = [0] * (self._now + 2)
        for first, last, size in [*self._lives, *living]:
            change[first] += size
            change[last + 1] -= size
        return max(accumulate(change))


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
