"""Depthwise convolution on a CPU, with the slow parts of its backward pass done another way.

In bfloat16 oneDNN takes 10 to 60 times as long for the gradient of the input of a strided depthwise convolution as in
float32, and 5 times as long for that of a 5 x 5 kernel: of MobileNetV2's step in bfloat16 that is half, of V3's two
thirds. Both are computed in float32. A 5 x 5 kernel's gradient still takes ten times a 3 x 3 kernel's there: where the
stride is 1 it is put together from those of the four 3 x 3 kernels in its corners, in half of the time. (In float32
throughout that gains little, and loses a sixth of a step at 96 px.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FasterDepthwise(TorchFunctionMode):
    """Within it, depthwise convolutions on the CPU under bfloat16 autocast go backward by the faster way."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What torch calls in place of each of its functions."""
        if func is torch.conv2d and not kwargs and len(args) == 7 and torch.is_grad_enabled():
            images, kernels, bias, stride, padding, dilation, groups = args
            depthwise = groups > 1 and groups == images.shape[1]
            if depthwise and bias is None and not isinstance(padding, str) and images.device.type == "cpu":
                how = stride, padding, dilation, groups
                if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
                    return _Depthwise.apply(images.to(torch.bfloat16), kernels.to(torch.bfloat16), *how)
        return func(*args, **(kwargs or {}))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, kernels: Tensor, *how: Any) -> Tensor:
        """(B, C, H, W), (C * m, 1, k, k) and conv2d's stride, padding, dilation, groups -> (B, C * m, h, w)."""
        ctx.save_for_backward(images, kernels)
        ctx.how = [_pair(each) for each in how[:3]] + [how[3]]
        return torch.conv2d(images, kernels, None, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (images, kernels) = gradients, ctx.saved_tensors
        by_images = by_kernels = None
        stride, padding, dilation, _ = ctx.how
        if ctx.needs_input_grad[0]:  # of the images only the shape is read
            strided = max(stride) > 1
            given = (gradient.float(), _shape(images), kernels.float()) if strided else (gradient, images, kernels)
            by_images = _backward(given, ctx.how, [True, False, False])[0]
        if ctx.needs_input_grad[1]:  # of the kernels only the shape
            large = max(kernels.shape[2:]) > 3
            if _by_corners(kernels, stride, dilation):
                by_kernels = _corners(gradient, images, kernels, padding)
            else:
                given = (gradient.float(), images.float(), _shape(kernels)) if large else (gradient, images, kernels)
                by_kernels = _backward(given, ctx.how, [False, True, False])[1]
        found = (None if each is None else each.to(images.dtype) for each in (by_images, by_kernels))
        return *found, None, None, None, None


def _by_corners(kernels: Tensor, stride: list[int], dilation: list[int]) -> bool:
    return tuple(kernels.shape[2:]) == (5, 5) and stride == [1, 1] and dilation == [1, 1]


def _corners(gradient: Tensor, images: Tensor, kernels: Tensor, padding: list[int]) -> Tensor:
    """The gradient by 5 x 5 kernels (C * m, 1, 5, 5) of a convolution of stride 1, from those by their corners."""
    padded = F.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    height, width = (length + 2 for length in gradient.shape[2:])
    small = kernels[..., :3, :3].contiguous()  # only the shape is read
    how = [[1, 1], [0, 0], [1, 1], images.shape[1]]
    found = torch.empty_like(kernels)
    for top in (0, 2):
        for left in (0, 2):
            part = padded[..., top : top + height, left : left + width]
            corner = _backward((gradient, part, small), how, [False, True, False])[1]
            assert corner is not None
            found[..., top : top + 3, left : left + 3] = corner
    return found


def _pair(each: int | Sequence[int]) -> list[int]:
    return [each, each] if isinstance(each, int) else list(each)


def _shape(x: Tensor) -> Tensor:
    """A float32 tensor like `x` whose values do not matter."""
    return torch.empty_like(x, dtype=torch.float32)


def _backward(given: tuple[Tensor, ...], how: Any, wanted: list[bool]) -> list[Tensor | None]:
    """The gradients of a loss by images and kernels that are wanted; given: its gradient by the output."""
    stride, padding, dilation, groups = how
    found: list[Tensor | None] = torch.ops.aten.convolution_backward(
        *given, None, stride, padding, dilation, False, [0, 0], groups, wanted
    )
    return found
