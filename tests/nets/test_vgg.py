"""VGG against the paper's Table 1 and 2, and torchvision's networks."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision.models
from torch import nn

from handlens import nets
from handlens.cost import count_params
from handlens.errors import HandlensError
from handlens.nets.layers import LocalResponseNorm, init_weights, pool_to

NETS = {  # params, MACs at 224 px, layers with weights
    "vgg11": (132_863_336, 7_609_090_048, 11),
    "vgg11_lrn": (132_863_336, 7_609_090_048, 11),
    "vgg13": (133_047_848, 11_308_466_176, 13),
    "vgg16c": (133_638_952, 11_770_888_192, 16),
    "vgg16": (138_357_544, 15_470_264_320, 16),
    "vgg19": (143_667_240, 19_632_062_464, 19),
    "vgg11_bn": (132_868_840, 7_609_090_048, 11),
    "vgg13_bn": (133_053_736, 11_308_466_176, 13),
    "vgg16c_bn": (133_638_952 + 2 * 4_224, 11_770_888_192, 16),
    "vgg16_bn": (138_365_992, 15_470_264_320, 16),
    "vgg19_bn": (143_678_248, 19_632_062_464, 19),
}


@pytest.mark.parametrize("name", NETS)
def test_counts_and_maps(name: str, macs: Callable[[nn.Module, int], int]) -> None:
    params, multiply_adds, layers = NETS[name]
    net = nets.on_meta(name)
    assert count_params(net) == params
    assert macs(net, 224) == multiply_adds
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in net.modules()) == layers
    found = [tuple(stage.shape[1:3]) for stage in net.features(torch.empty(1, 3, 224, 224, device="meta"))]
    assert found == [(64, 224), (128, 112), (256, 56), (512, 28), (512, 14), (512, 7)]


def test_c_has_a_1x1_last_in_its_last_three_stages() -> None:
    convs = [module for module in nets.on_meta("vgg16c").modules() if isinstance(module, nn.Conv2d)]
    assert [index for index, conv in enumerate(convs) if conv.kernel_size == (1, 1)] == [6, 9, 12]
    assert all(conv.kernel_size in ((1, 1), (3, 3)) for conv in convs)


@torch.no_grad()
def test_a_lrn_normalises_after_the_first_relu() -> None:
    features = nets.on_meta("vgg11_lrn").features.to_empty(device="cpu")
    init_weights(features)
    images = torch.randn(1, 3, 32, 32) * 100
    torch.testing.assert_close(features(images)[0], LocalResponseNorm()(torch.relu(features[0](images))))
    assert sum(isinstance(module, LocalResponseNorm) for module in features) == 1


def test_a_lrn_takes_no_batch_norm() -> None:
    with pytest.raises(HandlensError, match="vgg11_lrn takes no 'batch_norm'"):
        nets.create("vgg11_lrn", batch_norm=True)


@pytest.mark.parametrize(
    "name",
    [
        *("vgg11", "vgg11_bn"),
        *(pytest.param(f"vgg{n}{bn}", marks=pytest.mark.slow) for n in (13, 16, 19) for bn in ("", "_bn")),
    ],
)
@torch.no_grad()
def test_logits_equal_torchvisions(name: str, twin: Callable[..., nets.Net]) -> None:
    reference = getattr(torchvision.models, name)(init_weights=False).eval()
    net = twin(name, reference)
    images = torch.randn(2, 3, 90, 64)
    expected = reference(images)
    assert expected.std() > 0.1
    assert (net(images) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["vgg11", "vgg16c_bn"])
def test_smallest_input(name: str) -> None:
    net = nets.on_meta(name).eval()
    nets.check_input(net, 32)
    assert net(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 1000)
    with pytest.raises(HandlensError, match="smallest that works is 32 px"):
        nets.check_input(net, 31)
    with pytest.raises(RuntimeError):
        net(torch.empty(2, 3, 31, 31, device="meta"))


@pytest.mark.parametrize("name", ["vgg11_lrn", "vgg19_bn"])
def test_pieces_begin_with_a_convolution_and_hold_every_parameter_once(name: str) -> None:
    net = nets.on_meta(name)
    *convs, classifier = net.blocks()
    assert len(convs) == NETS[name][2] - 3 and classifier is net.classifier
    assert all(isinstance(next(piece.children()), nn.Conv2d) for piece in convs)
    owned = [id(parameter) for piece in net.blocks() for parameter in piece.parameters()]
    assert owned == [id(parameter) for parameter in net.parameters()]


def test_pooling_to_a_size_that_does_not_divide_the_map_converts_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    """Frozen features are computed by a file of torch's older exporter, which prints its graph where it fails."""
    pytest.importorskip("onnx", reason="onnx is not installed")

    class Pooled(nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return pool_to(maps, 7)

    file = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(Pooled(), (torch.zeros(1, 2, 5, 9),), file, dynamo=False)
    assert file.getvalue() and "graph" not in capfd.readouterr().out
