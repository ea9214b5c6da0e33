"""Int8 computed in float, against the same arithmetic done by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens.compress.calls import Calls
from handlens.compress.fake import Rounded, ranges_of, round_activation, round_weight
from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.nets.fold import fold_batch_norm, pairs

Build = Callable[..., Net]


def by_hand(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / 127
    return torch.where(scale > 0, (weight / scale).round(), 0) * scale


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (8, 1, 5, 5), (4, 10)])
def test_weights_get_255_levels_for_each_channel(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(-3, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    weight[1] = 0
    rounded = round_weight(weight)
    torch.testing.assert_close(rounded, by_hand(weight))
    assert (rounded[1] == 0).all()
    levels = rounded[0] / (weight[0].abs().max() / 127)
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.3, 4.1), (-2.0, -0.5), (0.5, 3.0), (0.0, 0.0)])
def test_activations_get_256_levels_with_zero_among_them(low: float, high: float) -> None:
    values = torch.linspace(-8, 8, 4001)
    rounded = round_activation(values, low, high)
    assert round_activation(torch.zeros(1), low, high).item() == 0
    assert len(rounded.unique()) <= 256
    step = max(max(high, 0) - min(low, 0), 1e-6) / 255
    within = (values > min(low, 0) + step) & (values < max(high, 0) - step)
    assert ((rounded - values)[within].abs() <= step / 2 + 1e-5).all()
    slack = step + 1e-6  # of a range that is a single value
    assert rounded.min() >= min(low, 0) - slack and rounded.max() <= max(high, 0) + slack


def test_gradients_go_straight_through() -> None:
    values = torch.tensor([-3.0, 0.3, 5.0], requires_grad=True)
    round_activation(values, -1.0, 4.0).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0, 1, 0]
    weight = torch.randn(4, 3, requires_grad=True)
    round_weight(weight).sum().backward()
    assert weight.grad is not None and (weight.grad == 1).all()


class Tiny(nn.Module):
    """Two convolutions with ReLU6, a residual sum, a mean and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU6(inplace=True))
        self.second = nn.Conv2d(4, 4, 1, bias=False)
        self.last = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        return self.last((maps + self.second(maps)).mean((2, 3)))


def test_each_kernel_reads_rounded_values() -> None:
    torch.manual_seed(0)
    net, images = Tiny(), torch.randn(2, 3, 8, 8) * 3
    ranges = ranges_of(net, images)
    with torch.no_grad(), Rounded(net, ranges):
        found = net(images)

        def rounded(values: Tensor, floats: Tensor) -> Tensor:
            return round_activation(values, floats.min().item(), floats.max().item())

    with torch.no_grad():
        conv, second, last = net.first[0], net.second, net.last
        assert isinstance(conv, nn.Conv2d)
        maps, float_maps = (
            F.relu6(F.conv2d(rounded(images, images), by_hand(conv.weight), conv.bias, 1, 1)),
            net.first(images),
        )
        maps = rounded(maps, float_maps)
        other, float_other = F.conv2d(maps, by_hand(second.weight)), second(float_maps)
        total, float_total = maps + rounded(other, float_other), float_maps + float_other
        mean, float_mean = rounded(total, float_total).mean((2, 3)), float_total.mean((2, 3))
        expected = F.linear(rounded(mean, float_mean), by_hand(last.weight), last.bias)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found, net(images), atol=1e-4)


def test_a_network_is_itself_again_afterwards(shaken: Build) -> None:
    net, images = shaken("mobilenet_v3_small", width=0.35), torch.randn(2, 3, 64, 64)
    before, state = net(images), {key: value.clone() for key, value in net.state_dict().items()}
    ranges = ranges_of(net, images)
    with Rounded(net, ranges):
        rounded = net(images)
    assert torch.equal(net(images), before) and not torch.equal(rounded, before)
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small"])
def test_weights_round_alike_folded_and_not(name: str, shaken: Build) -> None:
    net = shaken(name, width=0.35)
    folded = fold_batch_norm(net)
    found = pairs(net)
    assert len(found) > 30
    names = {module: name for name, module in net.named_modules()}
    for conv, norm in found:
        assert norm.running_var is not None
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1, 1)
        other = folded.get_parameter(f"{names[conv]}.weight")
        step = other.abs().amax((1, 2, 3), keepdim=True) / 127
        differing = (round_weight(conv.weight) * scale - round_weight(other)).abs() > 0.5 * step
        assert differing.float().mean() < 1e-3  # but for those that lie between two levels


def test_ranges_cover_all_batches_and_may_move(shaken: Build) -> None:
    net, images = shaken("resnet20"), torch.randn(20, 3, 32, 32)
    images[-1] *= 10
    ranges = ranges_of(net, images)
    assert ranges["photos"] == (images.min().item(), images.max().item())
    assert len(ranges) > 20
    before = dict(ranges)
    with torch.no_grad(), Rounded(net, ranges, momentum=0.1):
        net(images[:4])
    low, high = before["photos"]
    assert ranges["photos"][1] == pytest.approx(0.9 * high + 0.1 * images[:4].max().item())
    assert ranges["photos"][0] == pytest.approx(0.9 * low + 0.1 * images[:4].min().item())
    with torch.no_grad(), Rounded(net, fixed := dict(before)):
        net(images[:4])
    assert fixed == before


def test_only_one_module_is_rounded(shaken: Build) -> None:
    net, images = fold_batch_norm(shaken("mobilenet_v3_small", width=0.35)), torch.randn(2, 3, 64, 64)
    ranges, seen = ranges_of(net, images), []

    class Watched(Rounded):
        def weight(self, weight: Tensor) -> Tensor:
            seen.append(self.scope)
            return super().weight(weight)

    with torch.no_grad(), Watched(net, ranges, only="features.1.block.1"):
        net(images)
    assert seen == ["features.1.block.1.fc1", "features.1.block.1.fc2"]


def test_operations_outside_the_network_run_as_ever() -> None:
    names: list[str] = []

    class Counted(Calls):
        def call(self, name, func, args, kwargs):  # type: ignore[no-untyped-def]
            names.append(f"{self.scope}/{name}")
            return func(*args, **kwargs)

    net = Tiny()
    with Counted(net):
        torch.ones(2) + 1
        net(torch.zeros(1, 3, 4, 4))
        torch.ones(2) * 2
    assert names == ["first.0/conv2d", "first.1/hardtanh", "second/conv2d", "/add", "/mean", "last/linear"]


def test_an_error_in_the_network_leaves_no_hooks() -> None:
    net = Tiny()
    with pytest.raises(RuntimeError), Calls(net):
        net(torch.zeros(1, 5, 4, 4))
    assert not any(module._forward_hooks for module in net.modules())
    with Calls(net) as calls:
        net(torch.zeros(1, 3, 4, 4))
    assert not calls._scopes


def test_values_that_are_no_numbers_are_named(shaken: Build) -> None:
    net = shaken("resnet20")
    with torch.no_grad():
        net.get_parameter("layer2.0.conv1.weight")[0, 0] = float("nan")
    with pytest.raises(HandlensError, match=r"layer2.0.conv2 reads values from nan to nan"):
        ranges_of(net, torch.randn(2, 3, 32, 32))
