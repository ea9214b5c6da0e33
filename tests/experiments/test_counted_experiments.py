"""The experiments that count and measure: their numbers against formulas, papers and other ways to get them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from handlens.cost import macs_of
from handlens.experiments import (
    activations,
    batch_norm,
    bottleneck,
    receptive_field,
    relu_collapse,
    separable,
)


def rows_of(result: object, start: str) -> list[dict[str, object]]:
    tables: dict[str, list[dict[str, object]]] = result.tables  # type: ignore[attr-defined]
    return next(rows for title, rows in tables.items() if title.startswith(start))


# ---- counting --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 10, 10), 5 * 5 * 8 * 3 * 9),
        (nn.Conv2d(6, 6, 5, groups=6), (2, 6, 9, 9), 2 * 5 * 5 * 6 * 25),
        (nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 3)), (5, 7), 5 * (28 + 12)),
    ],
)
def test_macs(module: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert macs_of(module, *shape) == macs
    assert next(module.parameters()).device.type == "cpu"


# ---- bottleneck ------------------------------------------------------------------------------------------------------
def test_bottleneck() -> None:
    result = bottleneck.experiment(runs=3)
    [rows] = result.tables.values()
    weights = {row["one_by_one_filters"]: row["weights"] for row in rows}
    assert (weights[None], weights[32]) == (819_200, 208_896)
    assert all(row["macs"] == row["weights"] * 28 * 28 and row["p10_ms"] > 0 for row in rows)
    assert result.numbers["share_of_weights"] == 0.255
    cheaper = [filters for filters, count in weights.items() if filters and count < weights[None]]
    assert max(cheaper) < result.numbers["even_at_filters"] < 128
    assert "819,200" in result.finding and "208,896" in result.finding


# ---- separable -------------------------------------------------------------------------------------------------------
def test_separable() -> None:
    result = separable.experiment(runs=3, layers=((8, 6, 12), (5, 32, 16)))
    for row, inp, out, px in zip(rows_of(result, "Separable"), (6, 32), (12, 16), (8, 5), strict=True):
        expected = (inp * 9 + inp * out) / (inp * out * 9)
        assert [row["by_formula"], row["by_macs"], row["by_weights"]] == pytest.approx([expected] * 3)
        assert row["by_time"] > 0  # type: ignore[operator]
        maps_in, maps_out = inp * px**2, out * px**2
        standard = maps_in + maps_out + 9 * inp * out
        both = 3 * maps_in + maps_out + 9 * inp + inp * out
        assert row["by_bytes"] == pytest.approx(both / standard)
    steps = rows_of(result, "Each step")
    assert [row["step"] for row in steps] == ["standard", "depthwise", "pointwise"] * 2
    assert steps[0]["macs"] == 64 * 6 * 12 * 9 and steps[1]["macs"] == 64 * 6 * 9
    assert steps[1]["bytes_per_mac"] == pytest.approx(4 * (2 * 64 * 6 + 54) / (64 * 6 * 9))
    for row in steps:
        assert row["gmacs_per_s"] == pytest.approx(row["macs"] / row["p10_ms"] / 1e6)  # type: ignore[operator]
    means = result.numbers["means"]
    assert means["depthwise"]["bytes_per_mac"] > 5 * means["standard"]["bytes_per_mac"]


def test_the_layers_are_mobilenets() -> None:
    from handlens import nets

    shapes = set()

    def note(module: nn.Conv2d, images: tuple[torch.Tensor], out: torch.Tensor) -> None:
        if module.kernel_size == (1, 1):
            shapes.add((out.shape[-1], module.in_channels, module.out_channels))

    net = nets.on_meta("mobilenet_v1").eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    net(torch.empty(1, 3, 224, 224, device="meta"))
    assert set(separable.LAYERS) <= shapes


# ---- ReLU ------------------------------------------------------------------------------------------------------------
def test_relu_collapse() -> None:
    result = relu_collapse.experiment(draws=60, points=200)
    [rows] = result.tables.values()
    of = {(row["activation"], row["n"]): row for row in rows}
    for n in relu_collapse.DIMENSIONS:
        assert of["linear", n]["error_mean"] < 1e-12
        assert of["linear", n]["lost_share"] == 0
        lost = of["ReLU", n]
        assert lost["lost_share"] == pytest.approx((n + 1) / 2**n, abs=0.05)
        assert lost["lost_share_expected"] == (n + 1) / 2**n
    for name in ("ReLU", "ReLU6"):
        shape = [of[name, n]["scaled_error_mean"] for n in relu_collapse.DIMENSIONS]
        assert shape == sorted(shape, reverse=True)
        assert shape[0] > 0.6 and shape[-1] < 0.4
    assert of["ReLU6", 30]["error_mean"] > of["ReLU", 30]["error_mean"]  # it cuts more


def test_relu_and_back_in_many_dimensions_is_half_of_it() -> None:
    points = relu_collapse.spiral(50)
    matrix = np.random.default_rng(0).normal(size=(100_000, 2))
    back = relu_collapse.reconstruct(points, matrix, relu_collapse.ACTIVATIONS["ReLU"])
    np.testing.assert_allclose(back, points / 2, atol=0.06)


def test_reconstruction_by_the_identity_is_the_activation() -> None:
    points = relu_collapse.spiral(80)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(relu_collapse.RADIUS)
    for activation in relu_collapse.ACTIVATIONS.values():
        np.testing.assert_allclose(
            relu_collapse.reconstruct(points, np.eye(2), activation), activation(points), atol=1e-12
        )


# ---- activations -----------------------------------------------------------------------------------------------------
def test_activations() -> None:
    result = activations.experiment(runs=3, values=1000)
    swish, sigmoid = rows_of(result, "Distance")
    # swish - h-swish is steepest towards the corners at 3; sigmoid - h-sigmoid is flat where sigmoid' = 1/6.
    assert swish["greatest_distance"] == pytest.approx(3 - 3 / (1 + math.exp(-3)), abs=1e-9)
    assert swish["at_x"] == pytest.approx(3, abs=1e-9)
    share = (1 + math.sqrt(1 / 3)) / 2
    where = math.log(share / (1 - share))
    assert sigmoid["at_x"] == pytest.approx(where, abs=1e-4)
    for row in (swish, sigmoid):
        assert row["distance_at_minus_x"] == pytest.approx(row["greatest_distance"], abs=1e-9)
    assert sigmoid["greatest_distance"] == pytest.approx(abs(share - (where + 3) / 6), abs=1e-8)
    x = np.array(result.numbers["x"])
    assert (x.min(), x.max()) == (-8, 8)
    expected = {
        "swish": x / (1 + np.exp(-x)),
        "h-swish": x * np.clip(x + 3, 0, 6) / 6,
        "sigmoid": 1 / (1 + np.exp(-x)),
        "h-sigmoid": np.clip(x + 3, 0, 6) / 6,
        "ReLU": np.maximum(x, 0),
        "ReLU6": np.clip(x, 0, 6),
    }
    assert result.numbers["curves"].keys() == expected.keys() == activations.FORMULAS.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(result.numbers["curves"][name], values, atol=1e-12, err_msg=name)
    times = {row["activation"]: row for row in rows_of(result, "Time")}
    assert times["ReLU"]["times_relu"] == 1
    assert all(row["ns_per_value"] > 0 for row in times.values())  # type: ignore[operator]


# ---- receptive field -------------------------------------------------------------------------------------------------
def seen_by_one_output(steps: Sequence[tuple[int, int]]) -> int:
    """How many pixels of a row output 0 is made of, traced layer by layer."""
    pixels = {0}
    for kernel, stride in reversed(steps):
        pixels = {index * stride + offset for index in pixels for offset in range(kernel)}
    return max(pixels) - min(pixels) + 1


@pytest.mark.parametrize("steps", list(itertools.product([(1, 1), (3, 1), (3, 2), (5, 3), (2, 2)], repeat=3)))
def test_the_formula_is_what_an_output_is_made_of(steps: tuple[tuple[int, int], ...]) -> None:
    assert receptive_field.receptive_field(steps) == seen_by_one_output(steps)


@pytest.mark.parametrize(
    ("stack", "px"), [("one 7x7", 7), ("3x3, 3 layers", 7), ("AlexNet's steps", 195), ("VGG-16's steps", 212)]
)
def test_published_receptive_fields(stack: str, px: int) -> None:
    assert receptive_field.receptive_field(receptive_field.STACKS[stack]) == px


def test_receptive_fields_are_measured() -> None:
    stacks = ("one 7x7", "3x3, 1 layer", "3x3, 3 layers", "3x3, 10 layers", "AlexNet's steps")
    result = receptive_field.experiment(draws=4, stacks=stacks)
    rows = {row["stack"]: row for row in rows_of(result, "Receptive")}
    for name in stacks:
        field = receptive_field.receptive_field(receptive_field.STACKS[name])
        assert rows[name]["by_formula_px"] == rows[name]["measured_px"] == field
        assert 0 < rows[name]["effective_px"] <= field  # type: ignore[operator]
    assert (rows["3x3, 3 layers"]["weights_per_channel_pair"], rows["one 7x7"]["weights_per_channel_pair"]) == (27, 49)
    middle = [rows[name]["middle_third_share"] for name in ("one 7x7", "3x3, 3 layers", "3x3, 10 layers")]
    assert middle == sorted(middle)  # the deeper, the more the middle counts
    assert rows["3x3, 10 layers"]["effective_share"] < 0.9 < rows["3x3, 1 layer"]["effective_share"]  # type: ignore[operator]
    assert 0.2 < result.numbers["effective_growth_exponent"] < 0.9


@pytest.mark.parametrize("size", [3, 7, 10, 41])
def test_the_middle_ninth_of_an_even_gradient_is_a_ninth(size: int) -> None:
    assert receptive_field._middle_share(torch.full((size, size), 0.3)) == pytest.approx(1 / 9, rel=1e-5)
    corner = torch.zeros(size, size)
    corner[0, 0] = 1
    assert receptive_field._middle_share(corner) == 0


# ---- batch norm ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 1])
def test_batch_norm_is_torchs(seed: int) -> None:
    worst = batch_norm.against_torch(seed, steps=20)
    assert worst.keys() == {"training_output", "running_mean", "running_var", "evaluation_output"}
    assert max(worst.values()) < 1e-6


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_momentum_is_what_is_not_kept(keep: float) -> None:
    layer = nn.BatchNorm2d(2, momentum=1 - keep, affine=False, dtype=torch.float64)
    running = batch_norm.Running(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    one, none = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        x = 2 * torch.randn(4, 2, 3, 3, dtype=torch.float64) + 1
        ours, running = batch_norm.batch_norm(x, one, none, running, keep)
        torch.testing.assert_close(ours, layer(x))
    torch.testing.assert_close(running.mean, layer.running_mean)
    torch.testing.assert_close(running.var, layer.running_var)


def test_a_bias_before_batch_norm_does_nothing() -> None:
    assert max(batch_norm.with_and_without_bias(0).values()) < 1e-10


@pytest.mark.parametrize(("keep", "steps"), [(0.5, 7), (0.9, 44), (0.99, 459)])
def test_conventions(keep: float, steps: int) -> None:
    row = batch_norm.conventions(keep, seed=0)
    assert (row["torch_momentum"], row["keras_momentum"]) == (pytest.approx(1 - keep), keep)
    assert row["steps_to_1_percent"] == steps
    assert keep**steps <= 0.01 < keep ** (steps - 1)
    assert row["noise_measured"] == pytest.approx(row["noise_by_formula"], rel=0.1)
