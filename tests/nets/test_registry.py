"""What every registered network promises, whoever wrote it: its face, its modes, its gradients, its export.

One small member of each family is in the fast set, but of VGG; the rest is marked slow.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens import checkpoint, files, nets
from handlens.errors import HandlensError
from handlens.nets.layers import LocalResponseNorm, StochasticDepth, modules_of
from handlens.preprocess import Preprocess

NUM_CLASSES = 5
SMALL = {  # family: its member in the fast set; the first one registered where a family is not named here
    "mobilenet": "mobilenet_v3_small_035",
    "efficientnet": "efficientnet_lite0",
    "inception": "googlenet_torchvision",
    "resnet": "resnet20",
    "shufflenet": "shufflenet_v1_x0_25_g8",
    "vit": "vit_ti_32",
}
FAMILIES = {entry.family for entry in nets.NETS.values()} - {"vgg"}  # whose smallest has 130 million weights
FAST = {SMALL.get(family, nets.names(family)[0]) for family in FAMILIES}
RANDOM_IN_TRAINING = (nn.Dropout, StochasticDepth)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)


@pytest.fixture(
    scope="module", params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in nets.NETS]
)
def net(request: pytest.FixtureRequest) -> nets.Net:
    """The network with random weights and five classes; a test that changes it takes a copy.

    Batch norm has the statistics of noise: with its defaults some networks shrink every photo to nothing.
    """
    torch.manual_seed(0)
    net = nets.create(request.param, NUM_CLASSES)
    momentum = {layer: layer.momentum for kind in BATCH_NORM for layer in modules_of(net, kind)}
    for layer in momentum:
        layer.momentum = 1.0
    with torch.no_grad():
        net.train()(photos(net, at_least_px=64))
    for layer, value in momentum.items():
        layer.momentum = value
    return net


@pytest.fixture(autouse=True)
def _same_seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def twin(net: nets.Net) -> nets.Net:
    """A copy that shares the parameters, but not the modes, the buffers and the choice of layers."""
    return copy.deepcopy(net, {id(parameter): parameter for parameter in net.parameters()})


def photos(net: nets.Net, count: int = 4, at_least_px: int = 32) -> Tensor:
    """Normalised noise of the smallest size from `at_least_px` up that fits."""
    image_px = max(net.smallest_px, at_least_px)
    while True:
        try:
            nets.check_input(net, image_px)
        except HandlensError:
            image_px += 1
        else:
            return torch.randn(count, 3, image_px, image_px)


def training_loss(net: nets.Net, images: Tensor) -> Tensor:
    """Cross-entropy in training, auxiliary classifiers included, with the same dropout at every call."""
    labels = torch.arange(len(images)) % net.num_classes
    torch.manual_seed(2)
    logits, auxiliary = net.train().forward_train(images)
    return F.cross_entropy(logits, labels) + sum(F.cross_entropy(other, labels) for other in auxiliary)


def test_every_parameter_is_in_exactly_one_block(net: nets.Net) -> None:
    in_blocks = [id(parameter) for block in net.blocks() for parameter in block.parameters()]
    assert sorted(in_blocks) == sorted(id(parameter) for parameter in net.parameters())
    assert net.blocks()[-1] is net.classifier
    assert isinstance(net.classifier[-1], nn.Linear)


@torch.no_grad()
def test_face(net: nets.Net) -> None:
    images = photos(net.eval(), 2)
    maps = net.features(images)
    heights = [stage.shape[-2] for stage in maps]
    assert all(stage.ndim == 4 and len(stage) == 2 for stage in maps)
    assert heights == sorted(set(heights), reverse=True)
    assert heights[-1] < images.shape[-1]
    embedded, logits = net.embed(images), net(images)
    assert embedded.shape == (2, net.num_features)
    assert logits.shape == (2, net.num_classes) == (2, NUM_CLASSES)
    assert torch.equal(logits, net.classifier[-1](embedded))
    assert torch.equal(logits, net.forward_train(images)[0]) and net.forward_train(images)[1] == []
    assert torch.equal(net.last_map(images), maps[-1])
    if "vit" not in type(net).__module__:  # whose classifier reads the class token, which is in no map
        assert torch.equal(net.pool(maps[-1]), net.pooled(images))


@torch.no_grad()
def test_smallest_size(net: nets.Net) -> None:
    smallest = net.smallest_px
    nets.check_input(net, smallest)
    assert net.eval()(torch.randn(1, 3, smallest, smallest)).isfinite().all()
    with pytest.raises(HandlensError, match=f"{smallest} px"):
        nets.check_input(net, smallest - 1)


@torch.no_grad()
def test_head_is_replaced(net: nets.Net) -> None:
    images = photos(net.eval(), 2)
    for hidden in (0, 16):
        changed = nets.replace_head(twin(net), 3, hidden)
        assert changed.num_classes == 3
        assert changed.num_features == (hidden or net.num_features)
        assert changed.eval()(images).shape == (2, 3)
        assert torch.equal(changed.features(images)[-1], net.features(images)[-1])
        if not hidden:
            assert torch.equal(changed.embed(images), net.embed(images))
        training_loss(changed, photos(net))  # the auxiliary classifiers fit too


def test_gradient_reaches_every_parameter(net: nets.Net) -> None:
    net.zero_grad(set_to_none=True)
    training_loss(net, photos(net, at_least_px=64)).backward()
    without = [name for name, value in net.named_parameters() if value.grad is None or not value.grad.any()]
    net.zero_grad(set_to_none=True)
    assert without == []


def test_one_step_lowers_the_loss_of_its_batch(net: nets.Net) -> None:
    net, images = copy.deepcopy(net), photos(net, at_least_px=64)
    before = training_loss(net, images)
    before.backward()
    slope = sum(float(value.grad.square().sum()) for value in net.parameters() if value.grad is not None)
    with torch.no_grad():
        for value in net.parameters():
            if value.grad is not None:
                value -= 0.01 * float(before) / slope * value.grad  # a step that should take off 1 %
    assert 0.002 < 1 - training_loss(net, images).item() / before.item() < 0.05


@torch.no_grad()
def test_training_and_evaluation_differ_exactly_where_they_should(net: nets.Net) -> None:
    net = twin(net).eval()
    nets.set_stochastic_depth(net, 0.5)
    images = photos(net)
    expected = net(images)
    assert torch.equal(net(images), expected)
    exact = copy.deepcopy(net).double()  # float32 rounds photos of other batch sizes otherwise, in 50 layers visibly
    torch.testing.assert_close(exact(images[:1].double()), exact(images.double())[:1])  # no photo sees its neighbours

    def trained(*kinds: type[nn.Module]) -> Tensor:
        """Logits with everything in training but layers of the kinds that may differ; of those, only `kinds`."""
        changed = twin(net).train()
        for module in changed.modules():
            if isinstance(module, (*RANDOM_IN_TRAINING, *BATCH_NORM)):
                module.train(isinstance(module, kinds))
        return changed(images)

    torch.testing.assert_close(trained(), expected, rtol=1e-5, atol=1e-6)
    for kind in (*RANDOM_IN_TRAINING, *BATCH_NORM):
        layers = [module for module in modules_of(net, kind) if getattr(module, "p", 1) > 0]
        assert (trained(kind) - expected).abs().max().item() > 1e-6 if layers else torch.equal(trained(kind), trained())


def test_stochastic_depth_grows_along_the_network(net: nets.Net) -> None:
    net = twin(net)
    nets.set_stochastic_depth(net, 0.2)
    rates = [layer.p for layer in modules_of(net, StochasticDepth)]  # type: ignore[attr-defined]
    assert rates == sorted(rates)
    assert rates == [] or (rates[0] == 0 and rates[-1] == pytest.approx(0.2))
    nets.set_stochastic_depth(net, 0)
    assert not any(layer.p for layer in modules_of(net, StochasticDepth))  # type: ignore[attr-defined]


@torch.no_grad()
def test_a_run_of_it_answers_the_same(net: nets.Net, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    images, classes = photos(net.eval(), 2), tuple(f"class {number}" for number in range(NUM_CLASSES))
    name = request.node.callspec.params["net"]
    checkpoint.save(
        tmp_path,
        checkpoint.Checkpoint(net=net, name=name, arguments={}, classes=classes, preprocess=Preprocess()),
    )
    found = checkpoint.load(tmp_path)
    (tmp_path / files.WEIGHTS).unlink()  # half a gigabyte, of some
    assert (found.name, found.classes) == (name, classes)
    assert torch.equal(found.net.eval()(images), net(images))


@torch.no_grad()
def test_it_exports_with_any_batch(net: nets.Net) -> None:
    images = photos(net.eval(), 3)
    program = torch.export.export(net, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    torch.testing.assert_close(program.module()(images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", nets.NETS)
def test_entry(name: str) -> None:
    entry = nets.entry(name)
    assert 2012 <= entry.year <= 2026
    assert (entry.top1 is None) == (entry.source == "")
    assert entry.top1 is None or 40 < entry.top1 < 95
    assert name in nets.names(entry.family) and name in nets.names()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alexnet", [0.5, 0.5]),  # section 4.2, of the first two fully connected layers
        ("vgg16", [0.5, 0.5]),  # section 3.1
        ("googlenet", [0.7, 0.7, 0.4]),  # section 5: of the auxiliary classifiers, and Table 1
        ("inception_v3", [0.5]),
        ("xception", [0.5]),  # section 4.3
        ("mobilenet_v3_small", [0.2]),  # section 6.1: 0.8 are kept
        ("efficientnet_b0", [0.2]),  # section 5.2: from 0.2 for B0
        ("efficientnet_b7", [0.5]),  # to 0.5 for B7
    ],
)
def test_dropout_is_the_papers(name: str, expected: list[float]) -> None:
    assert [module.p for module in nets.on_meta(name).modules() if isinstance(module, nn.Dropout)] == expected


@pytest.mark.parametrize("name", ["alexnet", "vgg11_lrn", "googlenet"])
def test_response_normalisation_has_the_constants_of_alexnets_section_3_3(name: str) -> None:
    found = [module for module in nets.on_meta(name).modules() if isinstance(module, LocalResponseNorm)]
    assert found
    assert {(module.n, module.k, module.alpha, module.beta) for module in found} == {(5, 2.0, 1e-4, 0.75)}


@pytest.mark.parametrize(
    "given,near",
    [
        *(("mobilenet_v3_smal", "mobilenet_v3_small"), ("mobilenetv2", "mobilenet_v2"), ("MobileNet_V1", "_v1 or")),
        *((name, "mean mobilenet_v3_large or mobilenet_v3_small or") for name in ("mobilenet_v3", "mobilenetv3")),
        *(("efficientnet", "mean efficientnet_b0 or"), ("lite0", "mean efficientnet_lite0 or")),
    ],
)
def test_an_unknown_name_suggests_the_nearest(given: str, near: str) -> None:
    with pytest.raises(HandlensError, match=f"no net named '{given}'.*{near}"):
        nets.create(given)


def test_a_name_like_no_other_points_to_the_list() -> None:
    with pytest.raises(HandlensError, match="handlens nets"):
        nets.create("qqqqqqqq")


def test_an_unknown_argument_names_the_known_ones() -> None:
    with pytest.raises(HandlensError, match=r"takes no 'widht'.*width"):
        nets.create("mobilenet_v2", widht=0.5)


def test_a_number_of_classes_may_be_numpys() -> None:
    assert nets.create("mobilenet_v2", np.int64(3), width=0.1).num_classes == 3


@pytest.mark.parametrize("given", [None, 5])
def test_a_name_that_is_no_text(given: Any) -> None:
    with pytest.raises(HandlensError, match=f"no net named {given}"):
        nets.create(given)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"padding": "same"}, "padding is 'same'"),
        *(({"num_classes": value}, f"num_classes is {value!r}") for value in (0, -1, "5", 2.5, True, None)),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(HandlensError, match=message):
        nets.create("mobilenet_v2", **arguments)
    if "num_classes" in arguments:
        with pytest.raises(HandlensError, match=message):
            nets.replace_head(nets.on_meta("mobilenet_v2"), arguments["num_classes"])


def test_a_new_head_is_in_the_mode_of_its_network() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    net = nets.replace_head(nets.create("mobilenet_v2", 5, width=0.35).eval(), 3, hidden=64)
    assert torch.equal(net(images), net(images))  # no dropout
    assert all(module.training for module in nets.replace_head(net.train(), 3, hidden=64).modules())
    assert nets.replace_head(net.half(), 3).classifier[-1].weight.dtype == torch.float16
