"""The Vision Transformer against the paper's figures, torchvision's and timm's networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from handlens import nets
from handlens.errors import HandlensError
from handlens.nets import keys
from handlens.nets.layers import StochasticDepth, modules_of
from handlens.nets.vit import TABLE, Variant, VisionTransformer

FIGURES = {  # parameters with 1000 classes, and MACs at 224 px
    "vit_ti_16": (5_717_416, 1_253_683_200),
    "vit_s_16": (22_050_664, 4_598_882_304),
    "vit_b_16": (86_567_656, 17_563_828_224),
    "vit_l_16": (304_326_632, 61_554_712_576),
    "vit_b_32": (88_224_232, 4_409_186_304),
    "vit_l_32": (306_535_400, 15_377_539_072),
}
SMALL = Variant(layers=2, hidden_size=48, mlp_size=80, heads=3)


def small(image_px: int = 64, num_classes: int = 7) -> VisionTransformer:
    return VisionTransformer(nn.Conv2d(3, 48, 16, 16), 16, image_px, SMALL, num_classes, dropout=0.0).eval()


def torchvisions(image_px: int = 64) -> nn.Module:
    transformer = pytest.importorskip("torchvision.models.vision_transformer")
    torch.manual_seed(0)
    theirs = transformer.VisionTransformer(image_px, 16, 2, 3, 48, 80, num_classes=7).eval()
    perturb(theirs)
    return theirs


def count_params(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def perturb(net: nn.Module) -> None:
    """No parameter at its first value: biases, class token, positions and norms away from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += torch.empty_like(parameter).uniform_(-0.05, 0.05, generator=generator)


def copy(theirs: nn.Module, ours: nn.Module, source: str) -> None:
    ours.load_state_dict({keys.rename(source, "vit", key): value for key, value in theirs.state_dict().items()})


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("name", FIGURES)
def test_params_and_macs_are_the_published(name: str, macs: Callable[[nn.Module, int], int]) -> None:
    net = nets.on_meta(name)
    assert (count_params(net), macs(net, 224)) == FIGURES[name]


def test_384_px_is_a_larger_position_table() -> None:
    net = nets.on_meta("vit_b_16", image_px=384)
    assert count_params(net) == 86_859_496
    assert net.tokens.pos_embedding.shape == (1, 1 + 24 * 24, 768)


@pytest.mark.parametrize("size, name", [("Ti", "vit_ti_32"), ("S", "vit_s_32")])
def test_small_ones_at_patch_32_have_the_parameters_of_timms(size: str, name: str) -> None:
    transformer = pytest.importorskip("timm.models.vision_transformer")
    layers, hidden_size, _, heads = TABLE[size]
    with torch.device("meta"):
        theirs = transformer.VisionTransformer(patch_size=32, embed_dim=hidden_size, depth=layers, num_heads=heads)
    ours = nets.on_meta(name).state_dict()
    expected = {keys.rename("timm", "vit", key): value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.items()} == expected


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("vit_ti_16", "vit_tiny_patch16_224"),
        ("vit_s_16", "vit_small_patch16_224"),
        ("vit_s_32", "vit_small_patch32_224"),
    ],
)
def test_logits_and_token_map_equal_timms(name: str, model: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(model, num_classes=7).eval()
    perturb(theirs)
    ours = nets.create(name, 7).eval()
    copy(theirs, ours, "timm")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert difference(ours(images), theirs(images)) < 1e-4
        (expected,) = theirs.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)
        (found,) = ours.features(images)
    side = 224 // ours.smallest_px
    assert found.shape == (2, ours.num_features, side, side)
    assert difference(found, expected) < 1e-4


def test_logits_equal_torchvisions() -> None:
    theirs, ours = torchvisions(), small()
    copy(theirs, ours, "torchvision")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert difference(ours(images), theirs(images)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"])
def test_logits_of_whole_networks_equal_torchvisions(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    theirs = models.get_model(name, num_classes=7).eval()
    perturb(theirs)
    ours = nets.create(name, 7).eval()
    copy(theirs, ours, "torchvision")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert difference(ours(images), theirs(images)) < 1e-4


@pytest.mark.parametrize("image_px", [32, 96, 160])
def test_positions_are_interpolated_as_torchvisions(image_px: int) -> None:
    transformer = pytest.importorskip("torchvision.models.vision_transformer")
    first, ours = torchvisions(64), small(64)
    copy(first, ours, "torchvision")
    theirs = torchvisions(image_px)
    theirs.load_state_dict(transformer.interpolate_embeddings(image_px, 16, first.state_dict()))
    images = torch.randn(2, 3, image_px, image_px)
    with torch.no_grad():
        assert difference(ours(images), theirs(images)) < 1e-4


def test_photos_need_not_be_square() -> None:
    net = small()
    with torch.no_grad():
        assert net.features(torch.randn(1, 3, 48, 96))[-1].shape == (1, 48, 3, 6)
        assert net(torch.randn(1, 3, 48, 96)).shape == (1, 7)


def test_exports_at_a_size_whose_positions_are_interpolated() -> None:
    net = small()
    perturb(net)
    images = torch.randn(2, 3, 96, 96)
    exported = torch.export.export(net, (images,)).module()
    with torch.no_grad():
        assert difference(exported(images), net(images)) < 1e-5


def test_pool_gives_the_normalised_class_token() -> None:
    net = small()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        embedded = net.embed(images)
        assert torch.equal(net.classifier(embedded), net(images))
    assert torch.allclose(embedded.mean(1), torch.zeros(2), atol=1e-5)
    assert torch.allclose(embedded.var(1, correction=0), torch.ones(2), atol=1e-2)


def test_every_parameter_is_in_one_block() -> None:
    net = small()
    held = [id(parameter) for block in net.blocks() for parameter in block.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in net.parameters())
    assert len(net.blocks()) == 1 + SMALL.layers + 1 + 1


def test_both_branches_of_every_layer_can_be_dropped() -> None:
    net = nets.on_meta("vit_ti_16")
    nets.set_stochastic_depth(net, 0.1)
    probabilities = [layer.p for layer in modules_of(net, StochasticDepth)]
    assert len(probabilities) == 24 and probabilities[0] == 0 and probabilities[-1] == 0.1


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    net = nets.create("vit_ti_32", 7, image_px=64, dropout=0.3)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(net.train()(images), net(images))
        assert torch.equal(net.eval()(images), net(images))


@pytest.mark.parametrize("image_px, words", [(230, "224 and 240 px"), (17, "16 and 32 px"), (15, "16 px")])
def test_sizes_that_are_not_whole_patches_are_refused(image_px: int, words: str) -> None:
    net = nets.on_meta("vit_ti_16")
    with pytest.raises(HandlensError, match=words):
        nets.check_input(net, image_px)
    with pytest.raises(HandlensError, match=words):
        nets.on_meta("vit_ti_16", image_px=image_px)
    nets.check_input(net, 240)


@torch.no_grad()
def test_at_a_size_nothing_is_interpolated() -> None:
    torch.manual_seed(0)
    net = nets.create("vit_ti_32", 3, image_px=128).eval()
    settled = net.at(96)  # type: ignore[operator]
    assert settled.tokens.pos_embedding.shape == (1, 1 + 3 * 3, 192)
    assert net.tokens.pos_embedding.shape == (1, 1 + 4 * 4, 192)
    photos = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(settled(photos), net(photos))
