"""Trials of speed: what they choose, and that they leave no trace."""

from __future__ import annotations

import copy

import pytest
import torch

from handlens import nets
from handlens.nets import Net
from handlens.train import Recipe, loop, trial


def small() -> Net:
    torch.manual_seed(0)
    return nets.create("mobilenet_v3_small", 3, width=0.35)


def test_precision_is_chosen_by_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    seconds = {"32-true": 1.0}

    def step_s(net: Net, recipe: Recipe, precision: str, *_: object) -> float:
        tried.append(precision)
        return seconds[precision]

    monkeypatch.setattr(trial, "step_s", step_s)
    cpu = torch.device("cpu")
    for bf16_s, expected in ((0.5, ("bf16-mixed", 0.5)), (0.95, ("32-true", 1.0)), (2.0, ("32-true", 1.0))):
        seconds["bf16-mixed"] = bf16_s
        assert trial.faster_precision(small(), Recipe(), cpu) == expected
    tried.clear()
    assert trial.faster_precision(small(), Recipe(precision="bf16-mixed"), cpu) == ("bf16-mixed", 2.0)
    assert tried == ["bf16-mixed"]
    assert trial.usual_precision("cpu") == "32-true"


@pytest.mark.parametrize(("bf16_s", "steps"), [(0.5, 4), (1.9, 4), (20.0, 1)])
def test_a_precision_that_is_far_slower_is_tried_once(
    bf16_s: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []
    clock = [0.0]

    def loss_of(net: Net, images: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        tried.append(torch.is_autocast_enabled("cpu"))
        clock[0] += bf16_s if tried[-1] else 1.0
        logits = net(images)
        return logits.sum(), logits

    monkeypatch.setattr(loop, "loss_of", loss_of)
    monkeypatch.setattr(trial.time, "perf_counter", lambda: clock[0])
    recipe = Recipe(batch_size=2, image_px=32)
    found, step_s = trial.faster_precision(loop.prepare(small(), recipe), recipe, torch.device("cpu"))
    assert tried == [False] * 4 + [True] * steps
    assert (found, step_s) == (("bf16-mixed", bf16_s) if bf16_s < 0.9 else ("32-true", 1.0))


def test_the_trial_of_speed_leaves_the_network_as_it_was() -> None:
    net = loop.prepare(small(), Recipe())
    before = copy.deepcopy(net.state_dict())
    assert trial.step_s(net, Recipe(batch_size=4, image_px=32), "32-true", torch.device("cpu")) > 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
