"""`handlens compare`: networks beside each other."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from handlens import cost, nets
from handlens.cli import compare as command
from handlens.cost import Latency

Run = Callable[..., tuple[int, str, str]]
SOME = ("mobilenet_v3_small_035", "mobilenet_v3_small", "mobilenet_v2_050", "resnet20")


@pytest.fixture
def compared(command: Run) -> Run:
    return functools.partial(command, "compare")


def test_json(compared: Run) -> None:
    code, out, _ = compared(*SOME, "--no-latency", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and tuple(rows) == SOME
    for name, row in rows.items():
        assert (row["num_params"], row["macs"]) == cost.count(name)
        assert row["top1"] == nets.entry(name).top1 and row["source"] == nets.entry(name).source
        assert 4 * row["num_params"] <= row["size_bytes"] < 4.4 * row["num_params"]
        assert "median_ms" not in row
    assert rows["mobilenet_v3_small_035"]["front"] == ["macs", "num_params", "size_bytes"]
    assert rows["mobilenet_v2_050"]["front"] == ["num_params", "size_bytes"]  # more MACs than mobilenet_v3_small
    assert rows["resnet20"]["front"] == []  # no published top-1 on ImageNet


def test_latency_is_measured(compared: Run) -> None:
    code, out, _ = compared("resnet20", "mobilenet_v3_small_035", "--threads", 1, "--runs", 3)
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("mobilenet_v3_small_035 "))
    assert float(line.split()[6]) > 0 and line.endswith("MACs, parameters, size, latency")
    assert out.splitlines()[-1] == "measured with 1 thread, 3 runs each"


def test_small_numbers_of_an_axis_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    from handlens.cost import picture

    figures: list[Any] = []
    monkeypatch.setattr("handlens.figures.png", figures.append)
    row = {"family": "a", "top1": 60.0, "macs": 4e7, "num_params": 3.3e5, "size_bytes": 1.3e6}
    picture.side_by_side([row | {"name": "small"}, row | {"name": "large", "num_params": 8e5, "top1": 70.0}])
    (figure,) = figures
    figure.canvas.draw()
    ticks = [*figure.axes[1].get_xticklabels(), *figure.axes[1].get_xticklabels(minor=True)]
    texts = [tick.get_text() for tick in ticks if tick.get_text()]
    assert "0.6" in texts and not any("e" in text for text in texts)


def test_picture(compared: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        command, "time_net", lambda name, px, runs: Latency(len(name), len(name) - 1, len(name) + 1, runs, 1)
    )
    code, out, _ = compared(*SOME, "--picture", tmp_path / "a.png", "--json")
    assert code == 0 and json.loads(out)[0]["median_ms"] == len(SOME[0])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.height > 700  # two rows: four costs
    code, out, err = compared("resnet20", "resnet56", "--no-latency", "--picture", tmp_path / "empty.png")
    assert (code, out) == (2, "") and not (tmp_path / "empty.png").exists()
    assert "none of these nets has a published top-1, which the picture shows; leave out --picture" in err


def test_a_family(compared: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlens.cli.nets.costs_of", lambda names: {name: [1, 1] for name in names})
    monkeypatch.setattr(cost, "weight_bytes", lambda net: cost.memory.WeightBytes(4, 2, 1), raising=False)
    code, out, _ = compared("--family", "alexnet", "--no-latency", "--json")
    assert code == 0 and [row["name"] for row in json.loads(out)] == nets.names("alexnet")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to compare; name nets, or one --family"),
        (["resnet18", "--family", "vit"], "nets and a family"),
        (["--family", "vgt"], "--family is 'vgt', expected mobilenet, xception"),
        (["resnt18"], "did you mean resnet18"),
        (["resnet18", "--no-latency", "--threads", "2"], "--threads and --runs are for measuring latency"),
        (["resnet20", "--no-latency", "--picture", "a.jpg"], "ends in .png"),
    ],
)
def test_bad_input(compared: Run, arguments: list[str], words: str) -> None:
    code, out, err = compared(*arguments)
    assert code == 2 and words in err and not out
