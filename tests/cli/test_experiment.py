"""`handlens experiment`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from handlens import files
from handlens.experiments import EXPERIMENTS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, command: Run, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    return functools.partial(command, "experiment")


def test_the_list(call: Run) -> None:
    code, out, _ = call()
    assert code == 0
    assert all(name in out and about.line in out for name, about in EXPERIMENTS.items())
    listed = json.loads(call("--json")[1])
    assert [line["name"] for line in listed] == list(EXPERIMENTS)
    assert listed[0].keys() == {"name", "line", "paper"}


def test_numbers_and_figure_are_written(call: Run, tmp_path: Path) -> None:
    code, out, err = call("relu-collapse", "--seed", 3)
    assert (code, err) == (0, "")
    folder = tmp_path / "experiments" / "relu-collapse"
    assert sorted(path.name for path in folder.iterdir()) == [files.MADE, "figure.png", "numbers.json"]
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((folder / "numbers.json").read_text("utf-8"))
    assert facts["settings"]["seed"] == facts["data"]["seed"] == 3
    assert facts["finding"] in out and "scaled error mean" in out


def test_json_is_one_value_on_standard_output(call: Run, tmp_path: Path) -> None:
    code, out, err = call("relu-collapse", "--out", tmp_path / "a b", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts.pop("out") == str(tmp_path / "a b")
    assert facts == json.loads((tmp_path / "a b" / "numbers.json").read_text("utf-8"))
    assert call("relu-collapse", "--out", tmp_path / "a b")[0] == 0  # replaces its own two files
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "figure.png").write_bytes(b"a photo")
    code, out, err = call("relu-collapse", "--out", tmp_path / "class")
    assert (code, out) == (2, "") and "class has photos in it, such as figure.png" in err


def test_a_training_one_on_photos_given(call: Run, tiny_photos: Path, tmp_path: Path) -> None:
    code, out, _ = call("residual", "--photos", tiny_photos, "--epochs", 1)
    assert code == 0
    facts = json.loads((tmp_path / "experiments" / "residual" / "numbers.json").read_text("utf-8"))
    assert facts["data"]["photos"] == str(tiny_photos) and facts["data"]["epochs"] == 1
    assert "resnet56" in out
    assert "24 px, 1 epoch\n" in out.replace(" \n", "\n") and "1 epochs" not in out
    told = next(line for line in out.splitlines() if line.startswith("measured on: "))
    assert f"photos: {tiny_photos}" in told and "; split seed: 0; seed: 0; epochs: 1" in told and "classes: 3;" in told


@pytest.mark.parametrize("file", ["figure.png", "numbers.json"])
def test_what_cannot_be_written_is_told_before_the_training(
    call: Run, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlens.experiments.run", lambda *_, **__: pytest.fail("it was run"))
    (tmp_path / "a" / file).mkdir(parents=True)
    code, out, err = call("residual", "--out", tmp_path / "a")
    assert (code, out) == (2, "") and f"{file} is a folder" in err
    (tmp_path / "b").write_text("")
    assert "b is no folder" in call("residual", "--out", tmp_path / "b")[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("botleneck",), "did you mean bottleneck"),
        (("bottleneck", "--epochs", 3), "takes no 'epochs'"),
        (("activations", "--seed", 3), "takes no 'seed'"),
        (("residual", "--photos", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be(call: Run, arguments: tuple[object, ...], words: str, tmp_path: Path) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1
    assert not (tmp_path / "experiments").exists()
