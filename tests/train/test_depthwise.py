"""Depthwise convolution on a CPU: the same answer and gradients, by the faster way."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from handlens.train import depthwise
from handlens.train.depthwise import FasterDepthwise


def gradients(kernel: int, stride: int, groups: int, bf16: bool, faster: bool) -> list[torch.Tensor]:
    """Output and gradients by images and by kernels of one convolution of 8 channels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 8, 14, 14, generator=generator).contiguous(memory_format=torch.channels_last)
    images.requires_grad_()
    kernels = torch.randn(16, 8 // groups, kernel, kernel, generator=generator, requires_grad=True)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        FasterDepthwise() if faster else contextlib.nullcontext(),
    ):
        out = F.conv2d(images, kernels, None, stride, kernel // 2, 1, groups)
    out.float().square().sum().backward()
    assert images.grad is not None and kernels.grad is not None
    return [out.detach(), images.grad, kernels.grad]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_gradients_are_those_of_float32(kernel: int, stride: int) -> None:
    exact = gradients(kernel, stride, 8, bf16=False, faster=False)
    found = gradients(kernel, stride, 8, bf16=True, faster=True)
    assert found[0].dtype == torch.bfloat16
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours.float(), theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "bf16", "calls"),
    [(3, 2, 8, True, 2), (3, 2, 1, True, 0), (3, 2, 2, True, 0), (3, 2, 8, False, 0), (5, 2, 8, False, 0),
     (5, 1, 8, False, 0), (5, 1, 8, True, 5), (5, 2, 8, True, 2)],
)  # fmt: skip
def test_only_depthwise_convolutions_that_gain_take_it(
    kernel: int, stride: int, groups: int, bf16: bool, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    backward = depthwise._backward
    monkeypatch.setattr(depthwise, "_backward", lambda *given: seen.append(given) or backward(*given))
    gradients(kernel, stride, groups, bf16, faster=True)
    assert len(seen) == calls


def test_frozen_kernels_get_no_gradient() -> None:
    images = torch.randn(1, 4, 8, 8, requires_grad=True)
    kernels = torch.randn(4, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), FasterDepthwise():
        F.conv2d(images, kernels, None, 2, 1, 1, 4).float().sum().backward()
    assert images.grad is not None and kernels.grad is None


def test_a_bias_is_kept() -> None:
    images, bias = torch.zeros(1, 4, 8, 8), torch.full((4,), 3.0, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), FasterDepthwise():
        out = F.conv2d(images, torch.ones(4, 1, 3, 3), bias, 2, 1, 1, 4)
    assert torch.equal(out, torch.full_like(out, 3.0))
