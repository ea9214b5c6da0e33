"""Weights are put where the old ones' bytes are, and nowhere if it is not sure where that is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from handlens.export.exchange import exchanged
from handlens.nets import Net


class Small(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.classifier = nn.Sequential(nn.Linear(4, 5))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Small()


def other(net: Net) -> Net:
    made = copy.deepcopy(net)
    with torch.no_grad():
        for value in made.parameters():
            value += torch.randn_like(value)
    return made


def stored(net: Net, form: Callable[[Tensor], Tensor] = lambda value: value) -> bytes:
    """The weights one after the other, with something between them."""
    return b"".join(form(value).contiguous().numpy().tobytes() + b"between" for value in net.state_dict().values())


@pytest.mark.parametrize(
    "form",
    [
        lambda value: value,
        lambda value: value.permute(0, 2, 3, 1) if value.ndim == 4 else value,
        lambda value: value.permute(1, 2, 3, 0) if value.ndim == 4 else value,
        lambda value: value.T if value.ndim == 2 else value,
        lambda value: value + 3 if value.ndim == 1 else value,
    ],
    ids=["as it is", "channels last", "depthwise", "transposed", "with hard-sigmoid's 3"],
)
def test_each_weight_is_replaced_as_it_is_stored(net: Net, form: Callable[[Tensor], Tensor]) -> None:
    new = other(net)
    artifact = {"graph": b"conv -> linear", "weights": stored(net, form)}
    made = exchanged(artifact, net, new)
    assert made == {"graph": b"conv -> linear", "weights": stored(new, form)}
    assert artifact["weights"] == stored(net, form)


def test_a_zero_with_a_sign_is_found(net: Net) -> None:
    with torch.no_grad():
        net.conv.bias[0] = -0.0
    assert exchanged({"weights": stored(net)}, net, other(net))


def test_weights_in_two_places(net: Net) -> None:
    bias = net.conv.bias.detach().numpy().tobytes()
    assert exchanged({"weights": stored(net) + bias}, net, other(net)) is None
    assert exchanged({"weights": stored(net), "more": bias}, net, other(net)) is None


def test_two_weights_in_one_place(net: Net) -> None:
    """As where an exporter stores equal constants once."""
    net.conv.bias = nn.Parameter(net.classifier[0].bias.detach().clone())
    held = {name: value for name, value in net.state_dict().items() if name != "conv.bias"}
    assert exchanged({"weights": b"".join(value.numpy().tobytes() for value in held.values())}, net, other(net)) is None


def test_a_weight_that_is_left_out_or_might_stand_anywhere(net: Net) -> None:
    assert exchanged({"weights": stored(net)[:-30]}, net, other(net)) is None
    nn.init.zeros_(net.conv.bias)
    assert exchanged({"weights": stored(net)}, net, other(net)) is None


def test_other_layers_and_what_is_behind_them(net: Net) -> None:
    artifact = {"weights": stored(net)}
    warmer = other(net)
    warmer.temperature = 2.0
    assert exchanged(artifact, net, warmer) is None
    wider = other(net)
    wider.classifier[0] = nn.Linear(4, 6)
    assert exchanged(artifact, net, wider) is None
