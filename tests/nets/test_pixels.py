"""From uint8 photos to probabilities in one module: the pixel contract to the bit."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from handlens import nets
from handlens.nets.pixels import FromPixels
from handlens.preprocess import NORMALISATIONS, Normalisation, Preprocess

CONTRACTS = [
    Preprocess(),
    Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    Preprocess(channels="bgr"),
    Preprocess(mean=(127 / 255, 0.1, 0.9), std=(128 / 255, 1.0, 0.3), channels="bgr"),
]


@pytest.fixture(scope="module")
def net() -> nets.Net:
    torch.manual_seed(0)
    return nets.create("mobilenet_v3_small", 5, width=0.35).eval()


def photos(count: int, height: int = 48, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("preprocess", CONTRACTS)
def test_every_pixel_value_is_normalised_to_the_bit(net: nets.Net, preprocess: Preprocess) -> None:
    values = np.arange(256, dtype=np.uint8)
    every = np.stack([values, values[::-1], np.roll(values, 7)], axis=-1).reshape(1, 16, 16, 3)
    normalised = FromPixels(net, preprocess).normalise(torch.from_numpy(every))
    assert normalised.is_contiguous()
    np.testing.assert_array_equal(normalised.numpy(), preprocess.normalise(every))


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS[1:])
def test_each_photos_own_normalisation_is_the_contracts(
    net: nets.Net, normalisation: Normalisation, channels: Literal["rgb", "bgr"]
) -> None:
    preprocess = Preprocess(normalisation=normalisation, channels=channels, mean=(0, 0, 0.1), std=(1, 1, 0.9))
    dim, even = photos(1) // 5 + 30, np.full((1, 48, 48, 3), 77, np.uint8)
    images = np.concatenate([photos(2), dim, even])
    normalised = FromPixels(net, preprocess).normalise(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(normalised, preprocess.normalise(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("preprocess", CONTRACTS)
@torch.no_grad()
def test_equal_to_normalise_then_the_net(net: nets.Net, preprocess: Preprocess) -> None:
    images = photos(3, 48, 65)
    probabilities, logits = FromPixels(net, preprocess)(torch.from_numpy(images))
    assert logits.shape == (3, 5)
    assert torch.equal(logits, net(torch.from_numpy(preprocess.normalise(images))))
    assert torch.equal(probabilities, logits.softmax(-1))


def test_its_state_is_the_nets(net: nets.Net) -> None:
    wrapped = FromPixels(net, Preprocess())
    assert set(wrapped.state_dict()) == {f"net.{key}" for key in net.state_dict()}


@pytest.mark.parametrize(
    "preprocess", [Preprocess(), Preprocess(channels="bgr"), *(Preprocess(normalisation=n) for n in NORMALISATIONS[1:])]
)
@torch.no_grad()
def test_it_exports_with_any_batch(preprocess: Preprocess) -> None:
    wrapped = FromPixels(nets.create("resnet20", 5), preprocess).eval()
    program = torch.export.export(
        wrapped, (torch.from_numpy(photos(2)),), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},)
    )
    seven = torch.from_numpy(photos(7))
    for exported, expected in zip(program.module()(seven), wrapped(seven), strict=True):
        torch.testing.assert_close(exported, expected)
