"""Maps of a named layer or a stage are those that the network makes."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from handlens import nets
from handlens.errors import HandlensError
from handlens.explain import layers
from handlens.preprocess import Preprocess

CONTRACT = Preprocess(image_px=32, resize_px=32)
PHOTOS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def net() -> nets.Net:
    torch.manual_seed(0)
    return nets.create("mobilenet_v2", 3, width=0.35).eval()


def images() -> torch.Tensor:
    return torch.from_numpy(CONTRACT.normalise(PHOTOS))


def test_a_layer_by_name_before_what_follows_works_in_place(net: nets.Net) -> None:
    found = layers.feature_maps(net, CONTRACT, PHOTOS, "features.0.1")
    stem = net.features[0]  # type: ignore[index]
    with torch.no_grad():
        expected = stem[1](stem[0](images()))
    assert found.layer == "features.0.1"
    assert expected.min() < 0  # ReLU6 in place comes next
    np.testing.assert_array_equal(found.values, expected.numpy())


def test_stages_by_number_are_the_networks_own(net: nets.Net) -> None:
    with torch.no_grad():
        expected = [found.numpy() for found in net.features(images())]
    found = layers.stages(net, CONTRACT, PHOTOS)
    assert [one.layer for one in found] == ["features.1", "features.3", "features.6", "features.13", "features.18"]
    for number, (one, own) in enumerate(zip(found, expected, strict=True), 1):
        np.testing.assert_array_equal(one.values, own)
        again = layers.feature_maps(net, CONTRACT, PHOTOS, str(number))
        assert again.layer == one.layer
        np.testing.assert_array_equal(again.values, own)


def test_tokens_are_shown_as_maps() -> None:
    net = nets.create("vit_ti_16", 3, image_px=32).eval()
    with torch.no_grad():
        expected = net.features(images())[0].numpy()
    (stage,) = layers.stages(net, CONTRACT, PHOTOS)
    assert stage.layer == ""
    np.testing.assert_array_equal(stage.values, expected)
    last = layers.feature_maps(net, CONTRACT, PHOTOS, "encoder.layers.encoder_layer_11")
    np.testing.assert_array_equal(last.values, expected)


def test_hooks_are_taken_off(net: nets.Net) -> None:
    for call in (lambda: layers.stages(net, CONTRACT, PHOTOS), lambda: layers.feature_maps(net, CONTRACT, PHOTOS, "x")):
        with contextlib.suppress(HandlensError):
            call()
        assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ("features.3.cnv.0", "did you mean features.3.conv.0"),
        ("qqq", "has no layer 'qqq'; its parts are features, classifier"),
        ("", "has no layer ''"),
        ("6", "has no stage 6; its stages are 1 to 5"),
        ("classifier.1", r"gives \(2, 3\), no maps"),
    ],
)
def test_a_wrong_layer_is_one_sentence(net: nets.Net, layer: str, sentence: str) -> None:
    with pytest.raises(HandlensError, match=sentence):
        layers.feature_maps(net, CONTRACT, PHOTOS, layer)


def test_numbers() -> None:
    maps = np.array([[[0, 0], [1, 3]], [[0, 0], [0, 0]]], np.float32)
    assert layers.describe(maps) == {"shape": [2, 2, 2], "mean": [1.0, 0.0], "max": [3.0, 0.0], "zero_share": [0.5, 1]}
