"""What is captured as CUDA graphs, as far as that can be seen without a card."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from handlens import nets
from handlens.train.captured import Captured, Whole, captured


@pytest.mark.parametrize("name", ["mobilenet_v2", "googlenet"])
def test_the_whole_is_the_networks_own_pass(name: str) -> None:
    torch.manual_seed(0)
    net = nets.create(name, 5)
    images = torch.randn(2, 3, 64, 64)

    def answers(mixed: str) -> list[Tensor]:
        torch.manual_seed(1)
        return list(Whole(net, mixed)(images))

    torch.manual_seed(1)
    logits, auxiliary = net.forward_train(images)
    for got, expected in zip(answers("32-true"), [logits, *auxiliary], strict=True):
        torch.testing.assert_close(got, expected)
    assert all(answer.dtype == torch.float32 for answer in answers("bf16-mixed"))
    assert not torch.equal(answers("bf16-mixed")[0], answers("32-true")[0])


def test_batches_of_another_size_go_through_the_model() -> None:
    net = nets.create("mobilenet_v2", 5, width=0.1)
    images = torch.randn(4, 3, 32, 32)
    marks: list[str] = []

    class Model:
        def forward_train(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
            marks.append("model")
            return images.sum((1, 2, 3))[:, None], []

    def graphed(images: Tensor) -> tuple[Tensor, ...]:
        marks.append("graphed")
        return images.sum((1, 2, 3))[:, None], images

    whole = Captured(Model(), net, graphed, images.shape)
    assert whole.aux_weight == net.aux_weight
    logits, auxiliary = whole.forward_train(images)
    assert logits.shape == (4, 1) and len(auxiliary) == 1
    logits, auxiliary = whole.forward_train(images[:3])
    assert logits.shape == (3, 1) and auxiliary == []
    assert marks == ["graphed", "model"]


def test_without_a_card_the_model_is_what_it_was() -> None:
    model: Any = object()
    assert captured(model, nets.create("mobilenet_v2", 5, width=0.1), torch.zeros(1, 3, 32, 32), "32-true") is model


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_captured_step_is_the_plain_one() -> None:
    torch.manual_seed(0)
    net = nets.create("mobilenet_v2", 5, width=0.35).cuda().to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    through = captured(net, net, images, "32-true")
    assert isinstance(through, Captured)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    gradients = []
    for way in (net, through):
        net.load_state_dict(before)
        net.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        way.forward_train(images)[0].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
