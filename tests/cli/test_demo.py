"""`handlens demo`: the whole job on drawn flowers, as small as it may be."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import handlens
from handlens import files
from handlens.cli import demo
from handlens.errors import HandlensError
from handlens.photos import drawn
from handlens.train import job

pytest.importorskip("onnxruntime")

Run = Callable[..., tuple[int, str, str]]

WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("the INT8 bundle is asked without torch", name=name)
if "predict" in sys.orig_argv:
    sys.meta_path.insert(0, Absent())
"""


def test_it_does_the_whole_job_in_the_next_free_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(WITHOUT_TORCH)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'python'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    Path("demo").mkdir()  # an earlier one's
    Path("demo-2").symlink_to("nowhere")
    code, out, err = command("demo", "--photos-per-class", 10, "--epochs", 1, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["run"] == str(Path("demo-3", "run"))
    assert Path(told["report"]).is_file()
    assert len(list(Path("demo-3", "photos").rglob("*.jpg"))) == 50
    assert Path("demo-3", files.MADE).is_file()
    assert not list(Path("demo").iterdir())
    assert told["test"]["num_photos"] == 5
    assert 0 <= told["linear_top1"] <= 1
    assert told["linear_top1_ci95"][0] < told["linear_top1_ci95"][1]
    folders = [Path(guess["photo"]).parent.name for guess in told["guesses"]]
    assert folders == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]  # one of each class, in their order
    assert Path("demo-3", "flowers-int8.zip").is_file()
    assert len(told["int8"]["guesses"]) == 5
    assert {guess["name"] for guess in told["int8"]["guesses"]} <= set(folders)


def test_a_folder_that_exists_is_not_touched(tmp_path: Path, command: Run) -> None:
    folder = tmp_path / "tour"
    folder.mkdir()
    code, out, err = command("demo", "--out", folder)
    assert (code, out) == (2, "")
    assert f"{folder} exists already" in " ".join(err.split())
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--seed", 4294967296, "seed is 4294967296, expected 0 to 4294967295"),
        ("--epochs", 100_001, "epochs is 100001, expected 1 to 100000"),
        ("", "", "this needs tensorboard, which is not installed"),
        ("sklearn", "", "this needs scikit-learn, which is not installed"),
    ],
)
def test_what_cannot_be_trained_is_told_before_flowers_are_drawn(
    option: str,
    value: object,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Run,
) -> None:
    monkeypatch.setattr(drawn, "draw", lambda *_, **__: pytest.fail("drew flowers"))
    if option == "sklearn":
        monkeypatch.setitem(sys.modules, option, None)
        option = ""
    elif not option:
        monkeypatch.setitem(job.NEEDED, "tensorboard", "not_there")
    code, out, err = command("demo", "--out", tmp_path / "demo", *([option, value] if option else []))
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.split())
    assert not (tmp_path / "demo").exists()


def test_ctrl_c_before_there_is_a_run_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Run) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(handlens, "fit", stopped)
    code, out, err = command("demo", "--photos-per-class", 10, "--out", tmp_path / "demo")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "stopped"


@pytest.mark.parametrize("error", [KeyboardInterrupt, HandlensError("the disk is full")])
def test_a_demo_that_ends_while_it_draws_leaves_no_folder(
    error: BaseException | type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Run,
) -> None:
    def stopped(*_: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawn, "picture", stopped)
    code, _, _ = command("demo", "--photos-per-class", 10)
    assert code == (130 if error is KeyboardInterrupt else 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_what_comes_next_begins_with_the_environment_where_it_is_not_active(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    activate = {"posix": ". .venv/bin/activate", "nt": str(Path(".venv", "Scripts", "activate"))}[system]
    assert demo._activate(system) == f"{activate}\n        "
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert demo._activate(system) == ""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert demo._activate(system) == ""


def test_the_int8_bundles_accuracy_has_its_interval() -> None:
    timed = {"latency": {"median_ms": 1.0}}
    card = {"test": {"exported": {"top1": 0.9, "top1_ci95": (0.85, 0.94)}}, "parity": {"agreement": 0.99},
            "size_bytes": 1e6, "weights_float32_bytes": 4e6, "precision": "int8", **timed,
            "float32": {"size_bytes": 5e6, **timed}}  # fmt: skip
    assert "90.0% (95 % interval 85.0% to 94.0%), the same answer on 99.0%; 1.0 MB" in demo._told(card, "")
