"""What is captured as CUDA graphs, as far as that can be seen without a card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from handlens import nets, photos
from handlens.preprocess import Preprocess
from handlens.train import Recipe, loop
from handlens.train.captured import Captured, Whole, captured
from handlens.train.pixels import Fixed, Pixels


@pytest.mark.parametrize("name", ["mobilenet_v2", "googlenet"])
def test_the_whole_is_the_networks_own_pass(name: str) -> None:
    torch.manual_seed(0)
    net = nets.create(name, 5)
    images = torch.randn(2, 3, 64, 64)

    def answers(mixed: str) -> list[Tensor]:
        torch.manual_seed(1)
        return list(Whole(net, mixed)(images))

    torch.manual_seed(1)
    logits, auxiliary = net.forward_train(images)
    for got, expected in zip(answers("32-true"), [logits, *auxiliary], strict=True):
        torch.testing.assert_close(got, expected)
    assert all(answer.dtype == torch.float32 for answer in answers("bf16-mixed"))
    assert not torch.equal(answers("bf16-mixed")[0], answers("32-true")[0])


def test_batches_of_another_size_go_through_the_model() -> None:
    net = nets.create("mobilenet_v2", 5, width=0.1)
    images = torch.randn(4, 3, 32, 32)
    marks: list[str] = []

    class Model:
        def forward_train(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
            marks.append("model")
            return images.sum((1, 2, 3))[:, None], []

    def graphed(images: Tensor) -> tuple[Tensor, ...]:
        marks.append("graphed")
        return images.sum((1, 2, 3))[:, None], images

    whole = Captured(Model(), net, graphed, images.shape)
    assert whole.aux_weight == net.aux_weight
    logits, auxiliary = whole.forward_train(images)
    assert logits.shape == (4, 1) and len(auxiliary) == 1
    logits, auxiliary = whole.forward_train(images[:3])
    assert logits.shape == (3, 1) and auxiliary == []
    assert marks == ["graphed", "model"]


def test_without_a_card_the_model_is_what_it_was() -> None:
    model: Any = object()
    assert captured(model, nets.create("mobilenet_v2", 5, width=0.1), torch.zeros(1, 3, 32, 32), "32-true") is model


class Graphs:
    """Stands for torch.cuda.make_graphed_callables: runs the network to warm up, and then as it is."""

    def __init__(self) -> None:
        self.captures = 0
        self.replayed: list[int] = []  # sizes of batches

    def __call__(self, whole: Any, samples: tuple[Tensor], allow_unused_input: bool) -> Any:
        self.captures += 1
        for _ in range(3):  # moves statistics and draws random numbers
            whole(*samples)

        def replay(images: Tensor) -> tuple[Tensor, ...]:
            assert images.shape == samples[0].shape
            self.replayed.append(len(images))
            return tuple(whole(images))

        return replay


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    stand_in = Graphs()
    monkeypatch.setattr("handlens.train.captured._can_capture", lambda device: True)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", stand_in)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return stand_in


Log = list[dict[str, float]]
RECIPE = Recipe(
    net="mobilenet_v3_small", mode="scratch", image_px=32, batch_size=8, epochs=2, augment="light", dropout=0.5,
    ema_decay=0.5,
)  # fmt: skip
CONTRACT = Preprocess(image_px=32, resize_px=36)


@pytest.fixture(scope="module")
def splits(tiny_photos: Path) -> dict[str, photos.Photos]:
    found = photos.scan(tiny_photos)
    return photos.split(found, {path: path for path in found.paths})


def fit(splits: dict[str, photos.Photos], folder: Path, recipe: Recipe, **watching: Any) -> tuple[list[Tensor], Log]:
    """Weights and untimed figures of a run; an epoch is 8, 8, 8 and 6 photos."""
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    net = loop.prepare(nets.create(recipe.net, 3, width=0.35), recipe)
    pixels, fixed = Pixels(splits["train"], CONTRACT, 64), Fixed(splits["validation"], CONTRACT, 64)
    fabric = Fabric(accelerator="cpu", devices=1, precision=recipe.precision)
    net, log = loop.fit(net, pixels, fixed, recipe, CONTRACT, folder, fabric, **watching)
    untimed = [{key: value for key, value in row.items() if key not in ("seconds", "photos_per_s")} for row in log]
    return [value.clone() for value in net.state_dict().values()], untimed


def assert_same(one: tuple[list[Tensor], Log], other: tuple[list[Tensor], Log]) -> None:
    assert one[1] == other[1]
    assert all(map(torch.equal, one[0], other[0]))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_captured_run_gives_the_plain_figures(
    splits: dict[str, photos.Photos], tmp_path: Path, graphs: Graphs, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPE, precision=precision)
    through_graphs = fit(splits, tmp_path / "captured", recipe)
    assert graphs.captures == 1
    assert graphs.replayed == [8, 8, 8] * 2
    monkeypatch.undo()
    assert_same(through_graphs, fit(splits, tmp_path / "plain", recipe))
    assert graphs.captures == 1


def test_crops_of_another_size_are_captured_anew(
    splits: dict[str, photos.Photos], tmp_path: Path, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPE, precision="32-true", first_px=24)
    through_graphs = fit(splits, tmp_path / "captured", recipe)
    assert graphs.captures == 2
    assert graphs.replayed == [8, 8, 8] * 2
    monkeypatch.undo()
    assert_same(through_graphs, fit(splits, tmp_path / "plain", recipe))


@pytest.mark.parametrize("step", [1, 3])
def test_a_resumed_run_is_captured_anew_and_gives_the_same_figures(
    splits: dict[str, photos.Photos], tmp_path: Path, graphs: Graphs, step: int
) -> None:
    recipe = dataclasses.replace(RECIPE, precision="32-true")

    def stop(at: loop.Step) -> None:
        if (at.epoch, at.step) == (1, step):
            raise KeyboardInterrupt

    whole = fit(splits, tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        fit(splits, tmp_path / "stopped", recipe, on_step=stop)
    assert_same(fit(splits, tmp_path / "stopped", recipe), whole)
    assert graphs.captures == 3
    assert graphs.replayed == [8] * 12  # after step 3 a smaller batch is the first, which is none to capture


def test_what_cannot_be_captured_is_trained_as_it_is(
    splits: dict[str, photos.Photos], tmp_path: Path, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(whole: Any, samples: tuple[Tensor], allow_unused_input: bool) -> Any:
        graphs(whole, samples, allow_unused_input)
        raise RuntimeError("operation not permitted when stream is capturing")

    recipe = dataclasses.replace(RECIPE, precision="32-true")
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    tried = fit(splits, tmp_path / "tried", recipe)
    assert (graphs.captures, graphs.replayed) == (1, [])  # and not tried again at each step
    monkeypatch.undo()
    assert_same(tried, fit(splits, tmp_path / "plain", recipe))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_captured_step_is_the_plain_one() -> None:
    torch.manual_seed(0)
    net = nets.create("mobilenet_v2", 5, width=0.35).cuda().to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    through = captured(net, net, images, "32-true")
    assert isinstance(through, Captured)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    gradients = []
    for way in (net, through):
        net.load_state_dict(before)
        net.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        way.forward_train(images)[0].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
