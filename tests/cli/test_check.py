"""Bundles on the command line: checked, and used for predicting and evaluating, without torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from handlens import bundle
from handlens.bundle import Golden

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("runtime", ["onnx", "litert", "openvino"])
@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_a_good_bundle(command: Run, tiny: ModuleType, tmp_path: Path, runtime: str, name: str) -> None:
    bundle.write(tmp_path / name, tiny.bundle(runtime))
    code, out, err = command("check", tmp_path / name)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith(f"tiny, 3 classes, {runtime} float32")
    assert "those of the manifest" in out
    assert [line.split()[-1] for line in out.splitlines()[-3:]] == ["yes"] * 3
    assert "花朵" in out


def test_json_is_what_scripts_rely_on(command: Run, tiny: ModuleType, tmp_path: Path) -> None:
    bundle.write(tmp_path / "b", tiny.bundle())
    code, out, _ = command("check", tmp_path / "b", "--threads", 1, "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["ok"], facts["facts_agree"], facts["left_out"]) == (True, True, "")
    assert facts["artifact_bytes"] == len(tiny.make("onnx")["model.onnx"])
    assert [answer["photo"] for answer in facts["golden"]] == [f"golden/{index}.jpg" for index in range(3)]
    for answer in facts["golden"]:
        assert answer["ok"]
        assert answer["expected"] == answer["answered"]
        assert 0 <= answer["difference"] < 1e-5
        assert 0 < answer["margin"] <= 1


def wrong_bundle(tiny: ModuleType, precision: str) -> bundle.Bundle:
    """As if the trained network had been sure of another class on the second photo."""
    good = tiny.bundle(precision=precision)
    first, second, third = good.golden
    turned = Golden(photo=second.photo, probabilities=(0.9, 0.1, 0.0))
    return dataclasses.replace(good, golden=(first, turned, third))


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("json_", [False, True])
def test_another_answer_is_a_sentence(
    command: Run, tiny: ModuleType, tmp_path: Path, precision: str, json_: bool
) -> None:
    bundle.write(tmp_path / "b", wrong_bundle(tiny, precision))
    code, out, err = command("check", tmp_path / "b", *(["--json"] if json_ else []))
    assert code == 2
    assert len(err.splitlines()) == 1
    assert err.startswith(f"handlens: {tmp_path / 'b'} answers 1 of 3 golden photos differently")
    assert "golden/1.jpg is 花朵" in err
    assert "was blue sky 90.0%" in err
    assert "differ by 0.9" in err
    if json_:
        assert json.loads(out)["ok"] is False
    else:
        assert sum("NO" in line for line in out.splitlines()) == 1


def test_a_tampered_bundle_is_a_sentence(command: Run, tiny: ModuleType, tmp_path: Path) -> None:
    bundle.write(tmp_path / "b", tiny.bundle())
    file = tmp_path / "b" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    code, out, err = command("check", tmp_path / "b", "--json")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "SHA-256 differs" in err


def test_an_artifact_of_other_classes(command: Run, tiny: ModuleType, tmp_path: Path) -> None:
    """All hashes are right: only what the artifact says of itself gives it away."""
    permuted = tiny.bundle(classes=("花朵", "blue sky", "🌿 leaf"))
    bundle.write(tmp_path / "b", permuted)
    code, _, err = command("check", tmp_path / "b")
    assert code == 2
    assert "made for other classes" in err


def test_no_golden_photos(command: Run, tiny: ModuleType, tmp_path: Path) -> None:
    bundle.write(tmp_path / "b", tiny.bundle(golden=()))
    code, out, _ = command("check", tmp_path / "b")
    assert code == 0
    assert "the bundle has none" in out


def test_a_missing_runtime_is_said(
    command: Run, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.write(tmp_path / "b", tiny.bundle())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, err = command("check", tmp_path / "b")
    assert (code, err) == (0, "")
    assert 'not run here: this needs onnxruntime, which is not installed; pip install "handlens[onnx]"' in out
    assert "not read" in out
    facts = json.loads(command("check", tmp_path / "b", "--json")[1])
    assert (facts["ok"], facts["facts_agree"], facts["golden"]) == (True, None, [])


@pytest.mark.parametrize("argument", ["nothing", "nothing.zip", "empty", "photo.jpg"])
def test_no_bundle(command: Run, tmp_path: Path, argument: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    code, out, err = command("check", tmp_path / argument)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


# ---- predict and evaluate --------------------------------------------------------------------------------------------
def test_predict(command: Run, tiny: ModuleType, tmp_path: Path) -> None:
    bundle.write(tmp_path / "b.zip", tiny.bundle("litert", calibration={"temperature": 1.0}))
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(tiny.photo(index))
    photos = [tmp_path / f"{index}.png" for index in range(3)]
    code, out, err = command("predict", tmp_path / "b.zip", *photos, "--threads", 2, "--json")
    assert (code, err) == (0, "")
    assert [answer["guesses"][0]["name"] for answer in json.loads(out)] == list(tiny.CLASSES)


@pytest.fixture
def labelled(tiny: ModuleType, tmp_path: Path) -> Path:
    root = tmp_path / "labelled"
    for index in range(12):
        folder = root / ("test" if index < 6 else "train") / tiny.CLASSES[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(tiny.photo(index))
    return root


def test_evaluate(command: Run, tiny: ModuleType, tmp_path: Path, labelled: Path) -> None:
    bundle.write(tmp_path / "b.zip", tiny.bundle())
    report = tmp_path / "report.html"
    code, out, err = command("evaluate", tmp_path / "b.zip", labelled, "--json", "--threads", 1, "--report", report)
    facts = json.loads(out)
    assert code == 0
    assert (facts["top1"], facts["num_photos"], facts["net"]) == (1.0, 6, "tiny")
    assert facts["num_seen_in_training"] is None  # a bundle does not know
    assert "a bundle has no split" in facts["caution"] and "may flatter" in facts["caution"]
    assert facts["caution"] in err.splitlines()
    html = report.read_text(encoding="utf-8")
    assert facts["caution"] in html
    assert "CC0-1.0" in html  # of the card
    assert "Bundle" in html
    _, everything, _ = command("evaluate", tmp_path / "b.zip", labelled, "--split", "all", "--json")
    assert json.loads(everything)["num_photos"] == 12


def test_evaluate_needs_photos(command: Run, tiny: ModuleType, tmp_path: Path) -> None:
    bundle.write(tmp_path / "b.zip", tiny.bundle())
    code, _, err = command("evaluate", tmp_path / "b.zip")
    assert code == 2
    assert "no photos to be evaluated on" in err


def test_evaluate_on_other_classes(command: Run, tiny: ModuleType, tmp_path: Path, labelled: Path) -> None:
    (labelled / "test" / "花朵").rename(labelled / "test" / "roses")
    bundle.write(tmp_path / "b.zip", tiny.bundle())
    code, _, err = command("evaluate", tmp_path / "b.zip", labelled)
    assert code == 2
    assert "roses" in err


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "onnx", "lightning_fabric", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from handlens import cli
cli.main()
"""


@pytest.mark.parametrize("command", ["predict", "evaluate", "check"])
def test_torch_is_not_needed(tiny: ModuleType, tmp_path: Path, labelled: Path, command: str) -> None:
    bundle.write(tmp_path / "b.zip", tiny.bundle())
    photos = {
        "predict": [labelled, "--sort-into", tmp_path / "s"],
        "evaluate": [labelled, "--report", tmp_path / "r.html"],
        "check": [],
    }[command]
    arguments = [sys.executable, "-c", WITHOUT_TORCH, command, tmp_path / "b.zip", *photos, "--json"]
    found = subprocess.run(arguments, capture_output=True, text=True, encoding="utf-8")
    assert found.returncode == 0, found.stderr
    json.loads(found.stdout)


@pytest.mark.parametrize("command", ["nets", "export", "train"])
def test_where_torch_is_missing_it_is_named(tmp_path: Path, labelled: Path, command: str) -> None:
    given = {"nets": [], "export": [tmp_path / "run"], "train": [labelled, "--out", tmp_path / "run"]}[command]
    arguments = [sys.executable, "-c", WITHOUT_TORCH, command, *given]
    found = subprocess.run(arguments, capture_output=True, text=True, encoding="utf-8")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("handlens: this needs torch, which is not installed; pip install")
