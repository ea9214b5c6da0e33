"""What explains a mistake, in the report that a training leaves."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import handlens
from handlens import nets
from handlens.explain import saliency
from handlens.preprocess import Preprocess
from handlens.train import mistakes


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small"])
def test_without_the_extra_layer_the_features_are_those_below_it(name: str) -> None:
    net = nets.create(name, 3, width=0.35).eval()
    plain = copy.deepcopy(net)
    nets.replace_head(net, 3, hidden=7)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert net.eval().embed(images).shape == (2, 7)
        bare = nets.without_hidden(net, {"head_hidden": 7})
        torch.testing.assert_close(bare.embed(images), plain.embed(images))
        torch.testing.assert_close(nets.without_hidden(plain, {}).embed(images), plain.embed(images))
    assert net.num_features == 7


def test_a_network_is_looked_into_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """After training on a card it still lies there."""
    net, moves = nets.create("mobilenet_v2", 3, width=0.1), list[str]()
    to_cpu = net.cpu
    monkeypatch.setattr(net, "cpu", lambda: (moves.append("cpu"), to_cpu())[1])
    assert mistakes.looks(net, Preprocess(image_px=32, resize_px=32), moves.append)
    assert moves == ["cpu"]


def test_a_network_that_cannot_be_looked_into_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    net, notes = nets.create("mobilenet_v2", 3, width=0.1), list[str]()
    contract = Preprocess(image_px=32, resize_px=32)
    look = mistakes.looks(net, contract, notes.append)
    assert look and look(np.zeros((40, 30, 3), np.uint8), 1).shape == (40, 30)
    assert notes == []

    def fails(*_: Any, **__: Any) -> np.ndarray:
        raise RuntimeError("no gradient\nat all")

    monkeypatch.setattr(saliency, "grad_cam", fails)
    assert mistakes.looks(net, contract, notes.append) is None
    assert notes == ["the report does not show where the network looks: no gradient"]


@pytest.mark.parametrize("mode", ["head", "full"])
def test_the_report_of_a_training(
    mode: str, weight_file: Path, quick: dict[str, Any], tiny_photos: Path, tmp_path: Path
) -> None:
    """All test photos are labelled wrongly, so that there are mistakes."""
    first, *others = sorted(tiny_photos.iterdir())
    for folder in (first, *others):
        for number, photo in enumerate(sorted(folder.iterdir())):
            part, name = ("test", first.name) if number > 9 and folder != first else ("train", folder.name)
            (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(
                photo, tmp_path / part / name / f"{others.index(folder) if folder in others else 2}{photo.name}"
            )
    given = {**quick, "epochs": 15 if mode == "head" else 1}
    run = handlens.fit(
        tmp_path, out=tmp_path / "run", net="mobilenet_v3_small", weights=str(weight_file), mode=mode, **given
    )
    html = (run.folder / "report.html").read_text("utf-8")
    mistakes = html.count('alt="Photo of ')
    assert mistakes and html.count('alt="What speaks for ') == mistakes
    assert html.count('alt="Training photo of ') == 3 * mistakes
    if mode == "head":
        assert "Is the label blue sky right?" in html
