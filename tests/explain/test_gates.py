"""Gates are those that the network applies, and their statistics find what was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from handlens import nets
from handlens.errors import HandlensError
from handlens.explain import gates
from handlens.preprocess import Preprocess

CONTRACT = Preprocess(image_px=32, resize_px=32)
PHOTOS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "count"), [("mobilenet_v3_small_035", 9), ("mobilenet_v3_large_035", 8), ("efficientnet_b0", 16)]
)
def test_what_goes_in_times_the_gate_comes_out(name: str, count: int) -> None:
    torch.manual_seed(0)
    net = nets.create(name, 3).eval()
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for path, module in net.named_modules():
        if isinstance(module, gates.KINDS):
            module.register_forward_hook(lambda _, given, out, path=path: seen.update({path: (given[0], out)}))
    found = gates.record(net, CONTRACT, PHOTOS)
    assert list(found) == list(seen)
    assert len(found) == count
    for path, (given, out) in seen.items():
        values = found[path]
        assert values.shape == (3, given.shape[1])
        assert values.min() >= 0
        assert values.max() <= 1
        np.testing.assert_allclose(given * torch.from_numpy(values)[..., None, None], out, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["mobilenet_v2_035", "efficientnet_lite0", "mobilenet_v3_small_minimalistic", "resnet20"]
)
def test_a_network_without_gates_is_one_sentence(name: str) -> None:
    with pytest.raises(HandlensError, match="no squeeze-and-excite"):
        gates.record(nets.create(name, 3).eval(), CONTRACT, PHOTOS)


def test_the_channels_that_tell_classes_apart() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 200)
    by_class = np.array([0.1, 0.5, 0.9])[labels]
    by_lot = random.uniform(0, 1, 600)
    mixed = np.array([0.2, 0.4, 0.6])[labels] + random.choice([-0.1, 0.1], 600)
    table = np.stack([by_class, by_lot, mixed, np.zeros(600), np.ones(600)], 1)
    found = gates.statistics("x", table.astype(np.float32), labels, 3)
    np.testing.assert_allclose(found.mean_by_class[:, 0], [0.1, 0.5, 0.9], rtol=1e-6)
    assert found.class_share[0] == pytest.approx(1)
    assert found.class_share[1] < 0.02
    between = (0.2**2 + 0 + 0.2**2) / 3
    assert found.class_share[2] == pytest.approx(between / (between + 0.01), abs=0.02)
    assert found.class_share[3:].tolist() == [0, 0]
    assert (found.num_shut, found.num_open) == (1, 1)
    assert found.best_channels()[:2].tolist() == [0, 2]
    variances = table.var(0)
    assert found.layer_share == pytest.approx((variances * found.class_share).sum() / variances.sum())
    assert found.chance_share == pytest.approx(2 / 599)
    told = found.to_dict(("a", "b", "c"))
    assert told["best_channels"][0] == {
        "channel": 0, "class_share": pytest.approx(1), "most_open_for": "c", "least_open_for": "a"
    }  # fmt: skip
    assert list(told["mean_by_class"]) == ["a", "b", "c"]


def test_by_chance_the_share_is_what_it_says() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 60)
    found = gates.statistics("x", random.uniform(0, 1, (60, 2000)), labels, 5)
    assert found.class_share.mean() == pytest.approx(found.chance_share, rel=0.05)
    assert found.layer_share == pytest.approx(found.chance_share, rel=0.05)


def test_a_class_without_photos() -> None:
    found = gates.statistics("x", np.array([[0.2], [0.4]]), np.array([0, 2]), 3)
    assert np.isnan(found.mean_by_class[1]).all()
    assert found.class_share[0] == pytest.approx(1)
    assert found.to_dict(("a", "b", "c"))["best_channels"][0]["most_open_for"] == "c"
