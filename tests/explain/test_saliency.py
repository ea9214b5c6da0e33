"""Grad-CAM and rollout against planted cases and against the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from handlens import nets
from handlens.errors import HandlensError
from handlens.explain import gates, layers, saliency
from handlens.nets import Net
from handlens.nets.layers import modules_of
from handlens.nets.vit import TABLE, SelfAttention, VisionTransformer
from handlens.nets.vit_hybrid import HybridVisionTransformer
from handlens.preprocess import Preprocess

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
NETS = {  # one of each family, small, and the input it is tried at
    "mobilenet_v1_025": 64, "mobilenet_v2_035": 64, "mobilenet_v3_small_035": 64, "efficientnet_b0": 64,
    "shufflenet_v1_x0_25_g8": 64, "shufflenet_v2_x0_5": 64, "resnet18": 64, "resnet20": 32, "googlenet": 64,
}  # fmt: skip
LARGE = {"xception": 71, "inception_v3": 75, "alexnet": 99, "vgg11": 64, "vgg11_bn": 64}


class TwoColours(Net):
    """Class 0 is how much red there is, class 1 how much blue: hand-made weights, 8 px a cell."""

    smallest_px = 8

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 2, 8, 8, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.classifier = nn.Sequential(nn.Linear(2, 2))
        with torch.no_grad():
            for out, weights in enumerate([(1.0, -1.0, -1.0), (-1.0, -1.0, 1.0)]):
                self.look.weight[out] = torch.tensor(weights)[:, None, None] / 64
            self.classifier[0].weight.copy_(torch.eye(2))
            self.classifier[0].bias.zero_()

    def features(self, images: Tensor) -> list[Tensor]:  # type: ignore[override]
        return [self.act(self.look(images))]


@pytest.mark.parametrize("size", [(200, 140), (130, 210)])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("resize", ["crop", "letterbox", "squash"])
def test_the_map_is_where_the_colour_is(resize: str, channels: str, size: tuple[int, int]) -> None:
    width, height = size
    contract = Preprocess(image_px=64, resize_px=72, resize=resize, channels=channels, **PLAIN)  # type: ignore[arg-type]
    photo = np.full((height, width, 3), 90, np.uint8)
    spots = {0: (0.42, 0.33), 1: (0.6, 0.72)}  # x, y of the red and of the blue spot
    side = 24
    for class_index, (x, y) in spots.items():
        colour = (255, 0, 0) if class_index == 0 else (0, 0, 255)
        top, left = int(y * height) - side // 2, int(x * width) - side // 2
        photo[top : top + side, left : left + side] = colour
    names = {0: 0, 1: 1} if channels == "rgb" else {0: 1, 1: 0}  # a bgr network sees the blue first
    explain = saliency.explainer(TwoColours(), contract)
    for class_index, (x, y) in spots.items():
        heat = explain(photo, names[class_index])
        assert heat.shape == (height, width)
        assert heat.dtype == np.float32
        assert np.nanmin(heat) >= 0
        assert 0.9 < np.nanmax(heat) <= 1
        heat = np.nan_to_num(heat)
        down, across = np.mgrid[:height, :width]
        cell = max(size) / 8  # pixels of the photo a cell, at most
        assert abs((heat * (across + 0.5)).sum() / heat.sum() - x * width) < 0.6 * cell
        assert abs((heat * (down + 0.5)).sum() / heat.sum() - y * height) < 0.6 * cell
        assert heat[(np.hypot(across - x * width, down - y * height) > 2.5 * cell)].max() < 0.05


def test_what_speaks_against_a_class_does_not_count() -> None:
    net = TwoColours()
    with torch.no_grad():
        net.classifier[0].weight.copy_(torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))
    photo = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    contract = Preprocess(image_px=64, resize="squash", **PLAIN)  # type: ignore[arg-type]
    assert not saliency.explainer(net, contract)(photo, 0).any()


def noise(image_px: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, image_px, image_px, 3), np.uint8)


def alive(net: Net) -> Net:
    """Weights that bring the signal to the logits."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, generator=random)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias, 0, 0.3, generator=random)
    return net.eval()


def formula(maps: Tensor, logits: Tensor, classes: list[int]) -> np.ndarray:
    """Equations 1 and 2 of the paper."""
    slopes = torch.autograd.grad(logits[range(len(classes)), classes].sum(), maps)[0]
    return (slopes.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach().numpy()


def check(name: str, image_px: int) -> None:
    net = alive(nets.create(name, 5))
    contract, photos, classes = Preprocess(image_px=image_px, resize_px=image_px), noise(image_px), [1, 3]
    maps = net.features(torch.from_numpy(contract.normalise(photos)))[-1].detach().requires_grad_()
    expected = formula(maps, net.classifier(net.pool(maps)), classes)
    found = saliency.grad_cam(net, contract, photos, classes)
    assert found.shape == (2, *maps.shape[2:])
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("name", NETS)
def test_grad_cam_is_the_formula(name: str) -> None:
    check(name, NETS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_grad_cam_is_the_formula_for_large_nets(name: str) -> None:
    check(name, LARGE[name])


def test_any_head_and_any_layer() -> None:
    net = alive(nets.replace_head(nets.create("mobilenet_v2_035", 5), 3, hidden=8))
    contract, photos = Preprocess(image_px=64, resize_px=64), noise(64)
    last = saliency.grad_cam(net, contract, photos, [0, 2])
    np.testing.assert_array_equal(last, saliency.grad_cam(net, contract, photos, [0, 2], layer="5"))
    np.testing.assert_array_equal(last, saliency.grad_cam(net, contract, photos, [0, 2], layer="features.18"))
    assert saliency.grad_cam(net, contract, photos, [0, 2], layer="features.3").shape == (2, 16, 16)
    frozen = net.requires_grad_(False)
    np.testing.assert_array_equal(last, saliency.grad_cam(frozen, contract, photos, [0, 2]))


def test_the_hybrid_looks_at_its_last_convolutions() -> None:
    torch.manual_seed(0)
    net = HybridVisionTransformer("Ti", 64, 4, 0.0).eval()
    contract, photos = Preprocess(image_px=64, resize_px=64), noise(64)
    assert saliency.method_for(net) == "gradcam"
    maps = net.backbone(torch.from_numpy(contract.normalise(photos)))[-1].detach().requires_grad_()
    logits = net.classifier(net.pool(net.encoder(net.tokens(net.conv_proj(maps)))))
    expected = formula(maps, logits, [1, 2])
    found = saliency.grad_cam(net, contract, photos, [1, 2])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert saliency.rollout(net, contract, photos).shape == (2, 4, 4)


# ---- rollout ---------------------------------------------------------------------------------------------------------
def vit(layers: int = 2, side: int = 4) -> VisionTransformer:
    torch.manual_seed(0)
    variant = TABLE["Ti"]._replace(layers=layers)
    return VisionTransformer(nn.Conv2d(3, 192, 16, 16), 16, 16 * side, variant, 3, 0.0).eval()


def test_the_attention_is_the_one_that_is_used() -> None:
    net = vit()
    seen: list[tuple[Tensor, Tensor]] = []
    for module in modules_of(net, SelfAttention):
        module.register_forward_hook(lambda _, given, result: seen.append((given[0], result)))
    weights = saliency.attention(net, torch.randn(2, 3, 64, 64))
    assert len(weights) == 2
    for matrix, module, (tokens, result) in zip(weights, modules_of(net, SelfAttention), seen, strict=True):
        assert isinstance(module, SelfAttention)
        torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 3, 17))
        values = torch.nn.functional.linear(tokens, module.in_proj_weight[384:], module.in_proj_bias[384:])
        mixed = matrix @ values.reshape(2, 17, 3, 64).transpose(1, 2)
        torch.testing.assert_close(module.out_proj(mixed.transpose(1, 2).flatten(2)), result, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_even_attention_reaches_every_patch_alike(layers: int) -> None:
    net = vit(layers)
    for module in modules_of(net, SelfAttention):
        assert isinstance(module, SelfAttention)
        nn.init.zeros_(module.in_proj_weight)
    heat = saliency.rollout(net, Preprocess(image_px=64, resize_px=64), noise(64))
    np.testing.assert_allclose(heat, (1 - 0.5**layers) / 17, rtol=1e-5)


@pytest.mark.parametrize("patch", [0, 6, 13])
def test_the_patch_that_the_class_token_attends_to(patch: int) -> None:
    net = vit(1)
    with torch.no_grad():
        for value in (net.tokens.pos_embedding, net.tokens.class_token, net.conv_proj.weight, net.conv_proj.bias):
            value.zero_()
        net.tokens.class_token[..., 0] = 10  # dimension 0 says "class token", 1 says "this patch"
        net.tokens.pos_embedding[0, 1 + patch, 1] = 10
        attention = next(modules_of(net, SelfAttention))
        assert isinstance(attention, SelfAttention)
        attention.in_proj_weight.zero_()
        attention.in_proj_weight[1, 0] = 1  # its query asks for dimension 1
        attention.in_proj_weight[192 + 1, 1] = 1
    contract = Preprocess(image_px=64, resize="squash")
    heat = saliency.rollout(net, contract, noise(64))
    assert (heat.reshape(2, 16).argmax(1) == patch).all()
    whole = saliency.explainer(net, contract)(np.zeros((80, 120, 3), np.uint8), 0)
    row, column = np.unravel_index(whole.argmax(), whole.shape)
    assert (row // 20, column // 30) == divmod(patch, 4)
    assert whole.min() == 0


# ---- what cannot be explained ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ("features.99", "has no layer 'features.99'; did you mean features.9"),
        ("feature", "has no layer 'feature'; did you mean features"),
        ("9", "has no stage 9; its stages are 1 to 5"),
        ("0", "has no stage 0"),
        ("classifier.1", r"gives \(1, 5\), no maps"),
        ("features", "gives a list of maps, not one"),
        ("classifier", "is not run by itself"),
    ],
)
def test_a_layer_without_maps_is_one_sentence(layer: str, sentence: str) -> None:
    net = nets.create("mobilenet_v2_035", 5).eval()
    with pytest.raises(HandlensError, match=sentence):
        saliency.explainer(net, Preprocess(image_px=32, resize_px=32), layer=layer)


def test_methods_that_do_not_fit() -> None:
    contract = Preprocess(image_px=64, resize_px=64)
    with pytest.raises(HandlensError, match="Grad-CAM needs convolutional stages, which VisionTransformer has none"):
        saliency.explainer(vit(), contract, "gradcam")
    with pytest.raises(HandlensError, match=r"gives \(1, 17, 192\), no maps"):
        saliency.explainer(vit(), contract, "gradcam", layer="encoder.layers")
    with pytest.raises(HandlensError, match="needs self-attention, which MobileNetV2 has none of"):
        saliency.explainer(nets.create("mobilenet_v2_035"), contract, "rollout")


def test_a_network_in_training_mode_is_looked_at_as_in_use_and_left_as_it_was() -> None:
    """Batch norm would go by the batch, and its statistics would move."""
    net = nets.create("mobilenet_v3_small", 5, width=0.35)
    contract = Preprocess(image_px=64, resize_px=64)
    photos = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    net.train()
    net.features[0].eval()  # as a frozen part is
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def look() -> list[np.ndarray]:
        maps = layers.stages(net, contract, photos)
        return [
            saliency.grad_cam(net, contract, photos, [0, 1]),
            *gates.record(net, contract, photos).values(),
            *(each.values for each in maps),
        ]

    found = look()
    assert net.training and not net.features[0].training and net.classifier.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    assert all(np.array_equal(a, b) for a, b in zip(found, look(), strict=True))
