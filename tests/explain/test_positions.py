"""Position embeddings: similarities against their definition, and a planted table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from handlens import nets
from handlens.errors import HandlensError
from handlens.explain import positions


def waves(side: int) -> np.ndarray:
    """Sines and cosines of row and column, as trained tables resemble."""
    angle = np.arange(side)[:, None] * np.pi / side * np.array([0.5, 1.0])
    one = np.concatenate([np.sin(angle), np.cos(angle)], 1)
    rows, columns = np.broadcast_to(one[:, None], (side, side, 4)), np.broadcast_to(one[None], (side, side, 4))
    return np.concatenate([rows, columns], 2).astype(np.float32)


def test_similarity_is_the_cosine() -> None:
    table = np.random.default_rng(0).normal(size=(3, 3, 5)).astype(np.float32)
    maps = positions.similarity(table)
    a, b = table[0, 2], table[2, 1]
    assert maps[0, 2, 2, 1] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-5)
    np.testing.assert_allclose(maps.reshape(9, 9).diagonal(), 1, rtol=1e-6)


def test_numbers_of_a_planted_table() -> None:
    told = positions.describe(positions.similarity(waves(6)))
    assert told["side"] == 6
    assert told["neighbour_share"] == 1
    assert told["same_row"] == pytest.approx(told["same_column"])
    assert told["same_row"] > told["elsewhere"]
    assert told["by_distance"] == sorted(told["by_distance"], reverse=True)
    assert len(told["by_distance"]) == 5


def test_numbers_of_a_random_table() -> None:
    told = positions.describe(positions.similarity(np.random.default_rng(0).normal(size=(14, 14, 192))))
    assert told["neighbour_share"] < 0.12  # 8 of 195 by chance
    assert abs(told["same_row"]) < 0.01


def test_the_table_is_the_networks() -> None:
    net = nets.create("vit_ti_16", 3, image_px=64)
    found = positions.table(net)
    assert found.shape == (4, 4, 192)
    own = net.tokens.pos_embedding
    assert isinstance(own, torch.Tensor)
    np.testing.assert_array_equal(found[1, 2], own[0, 1 + 4 + 2].detach().numpy())


def test_one_patch() -> None:
    told = positions.describe(positions.similarity(np.ones((1, 1, 4))))
    assert told["same_row"] is None
    assert told["by_distance"] == []


def test_a_network_without_positions_is_one_sentence() -> None:
    with pytest.raises(HandlensError, match="has no position embeddings"):
        positions.table(nets.on_meta("mobilenet_v2"))
