"""Depthwise convolution in bfloat16 on a CPU, with the slow parts of its backward pass in float32.

There oneDNN takes 10 to 60 times as long for the gradient of the input of a strided depthwise convolution in bfloat16
as in float32, and 5 times as long for that of a 5 x 5 kernel: of MobileNetV2's step in bfloat16 that is half, of
V3's two thirds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FasterDepthwise(TorchFunctionMode):
    """Within it, under bfloat16 autocast on the CPU, depthwise convolutions go backward by the faster way."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What torch calls in place of each of its functions."""
        if func is torch.conv2d and not kwargs and len(args) == 7 and torch.is_grad_enabled():
            images, kernels, bias, stride, padding, dilation, groups = args
            depthwise = groups > 1 and groups == images.shape[1]
            bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
            if depthwise and bf16 and bias is None and not isinstance(padding, str) and images.device.type == "cpu":
                pair = images.to(torch.bfloat16), kernels.to(torch.bfloat16)
                return _Depthwise.apply(*pair, stride, padding, dilation, groups)
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
        if ctx.needs_input_grad[0]:  # of the images only the shape is read
            strided = max(ctx.how[0]) > 1
            given = (gradient.float(), _shape(images), kernels.float()) if strided else (gradient, images, kernels)
            by_images = _backward(given, ctx.how, [True, False, False])[0]
        if ctx.needs_input_grad[1]:  # of the kernels only the shape
            large = max(kernels.shape[2:]) > 3
            given = (gradient.float(), images.float(), _shape(kernels)) if large else (gradient, images, kernels)
            by_kernels = _backward(given, ctx.how, [False, True, False])[1]
        return by_images, by_kernels, None, None, None, None


def _pair(each: int | Sequence[int]) -> list[int]:
    return [each, each] if isinstance(each, int) else list(each)


def _shape(x: Tensor) -> Tensor:
    """A float32 tensor like `x` whose values do not matter."""
    return torch.empty_like(x, dtype=torch.float32)


def _backward(given: tuple[Tensor, ...], how: Any, wanted: list[bool]) -> list[Tensor | None]:
    """The gradients of a loss by images and kernels that are wanted, in bfloat16; given: its gradient by the output."""
    stride, padding, dilation, groups = how
    found = torch.ops.aten.convolution_backward(*given, None, stride, padding, dilation, False, [0, 0], groups, wanted)
    return [None if each is None else each.to(torch.bfloat16) for each in found]
