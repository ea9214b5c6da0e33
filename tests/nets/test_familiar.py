"""Logits that are lowered where a photo is unlike those of the classes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from handlens import nets
from handlens.errors import HandlensError
from handlens.nets.familiar import Familiar
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Preprocess

CENTRES = torch.eye(4, 8)  # along the first four of eight axes
KNOWN = Familiar(depth=0, centres=CENTRES, slope=2.0, offset=1.0)
LOGITS = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.1, 0.0, 0.2]])


def test_energy_is_the_lower_of_two_scores_and_probabilities_stay() -> None:
    vectors = torch.zeros(3, 8)
    vectors[0, 5] = 2.0  # unlike every centre: cosine 0
    vectors[1, 2] = vectors[1, 6] = 7.0  # cosine with the third: sqrt(1/2)
    vectors[2, 1] = 0.3  # cosine 1, bound 3, above its energy
    lowered = KNOWN.lowered(vectors, LOGITS, CENTRES)
    expected = torch.tensor([1.0, 1 + 2 * math.sqrt(0.5), LOGITS[2].logsumexp(0).item()])
    torch.testing.assert_close(lowered.logsumexp(1), expected)
    torch.testing.assert_close(lowered.softmax(1), LOGITS.softmax(1))
    assert torch.equal(lowered[2], LOGITS[2])


def test_a_vector_of_zeros_and_large_logits_stay_finite() -> None:
    assert KNOWN.lowered(torch.zeros(1, 8), torch.tensor([[900.0, -900.0, 0.0]]), CENTRES).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(("name", "hidden"), [("mobilenet_v3_small", 0), ("mobilenet_v2", 16), ("vit_ti_16", 0)])
def test_the_exported_wrapper_lowers_by_what_that_module_reads(name: str, hidden: int) -> None:
    torch.manual_seed(0)
    net = nets.replace_head(nets.create(name, 9).eval(), 5, hidden=hidden).eval()
    contract = Preprocess().at(64)
    photos = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
    probabilities, logits = FromPixels(net, contract)(photos)
    depth = len(net.classifier) - (4 if hidden else 1)
    images = torch.from_numpy(contract.normalise(photos.numpy()))
    vectors, same = net(images, depth)
    assert torch.equal(same, net(images))
    torch.testing.assert_close(same, net.classifier[depth:](net.classifier[:depth](net.pooled(images))))
    net.familiar = Familiar(depth=depth, centres=torch.randn(2, vectors.shape[1]), slope=1e-3, offset=-4.0)
    lowered_probabilities, lowered = FromPixels(net, contract)(photos)
    assert (lowered < logits - 1).all()
    torch.testing.assert_close(lowered, net.familiar.lowered(vectors, logits, net.familiar.centres))
    torch.testing.assert_close(lowered_probabilities, probabilities)


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 9}, {"depth": True}, {"depth": -1}, {"slope": math.nan}, {"offset": "1"}, {"centres": None},
        {"centres": CENTRES.half()}, {"centres": CENTRES[:0]}, {"centres": CENTRES[0]}, {"centres": torch.eye(4)},
    ],
)  # fmt: skip
def test_what_does_not_belong_to_a_network_is_refused(change: dict[str, Any]) -> None:
    net = nets.create("mobilenet_v2", 3, width=0.1)
    wide = Familiar(depth=1, centres=torch.eye(3, 1280), slope=1.0, offset=0.0)
    wide.check(net)
    with pytest.raises(HandlensError, match="familiar"):
        dataclasses.replace(wide, **change).check(net)
