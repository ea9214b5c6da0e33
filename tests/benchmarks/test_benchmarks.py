"""The benchmarks still run: each says what it wants, and those that need no other tools run to their end, small."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from handlens import bundle

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
WITH_ARGUMENTS = sorted(path.stem for path in FOLDER.glob("*.py") if "ArgumentParser" in path.read_text("utf-8"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads a benchmark as a module; what it imports beside itself is found as when it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{Path(path).stem}", FOLDER / f"{path}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def tiny_bundle(tiny: ModuleType, tmp_path: Path) -> Path:
    bundle.write(tmp_path / "tiny.zip", tiny.bundle())
    return tmp_path / "tiny.zip"


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_each_says_what_it_wants(
    name: str,
    script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as left:
        script(name).main()
    assert left.value.code == 0
    assert f"usage: {name}.py" in capsys.readouterr().out


def test_training_on_a_card_wants_one(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("train_gpu")
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["train_gpu.py", "photos"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("there is no CUDA device here")


def test_the_floor_of_a_card_is_by_the_maps_of_the_layers(script: Callable[[str], ModuleType]) -> None:
    """MobileNetV1 by its table: side and channels of the maps, each written by a convolution, its norm and its ReLU."""
    maps = [(112, 32), (112, 32), (112, 64), (56, 64), (56, 128), (56, 128), (56, 128), (28, 128), (28, 256)]
    maps += [(28, 256)] * 2 + [(14, 256), (14, 512)] + [(14, 512)] * 10 + [(7, 512), (7, 1024), (7, 1024), (7, 1024)]
    expected = 3 * sum(side**2 * channels for side, channels in maps)
    assert script("train_gpu").bytes_per_photo("mobilenet_v1") == pytest.approx(expected * 5 * 2, rel=1e-3)


def test_growth(
    script: Callable[[str], ModuleType],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    growth = script("growth")
    monkeypatch.setattr(growth, "RESULT", tmp_path / "growth.json")
    monkeypatch.setattr(growth, "CACHE", growth.LOOK)  # without torch, whose start takes seconds
    monkeypatch.setattr(sys, "argv", ["growth.py", str(tiny_bundle), "--counts", "20"])
    growth.main()
    found = json.loads((tmp_path / "growth.json").read_text("utf-8"))["counts"]["20"]
    assert set(found) == {"predict", "scan, examine, split", "photos kept decoded"}
    assert all(figures["photos_per_s"] > 0 and 10 < figures["memory_mib"] < 1000 for figures in found.values())
    assert "photos/s" in capsys.readouterr().out


def test_ours_and_the_loop_by_hand_give_the_same_labels(
    script: Callable[[str], ModuleType], tiny_bundle: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    side_by_side = script("side_by_side")
    photos = side_by_side.photos_below(str(tiny_photos), 12)
    settings = {"bundle": str(tiny_bundle), "photos": photos, "csv": str(tmp_path / "a.csv")}
    rates, last = side_by_side.in_turn({"ours": lambda: side_by_side.own("ours_predict.py", settings)}, 2)
    assert rates["ours"]["runs"] == 2 and rates["ours"]["least"] <= rates["ours"]["median"]
    assert last["ours"]["labels"] == [
        sorted({Path(p).parent.name for p in photos}).index(Path(p).parent.name) for p in photos
    ]
    assert len((tmp_path / "a.csv").read_text("utf-8").splitlines()) == len(photos) == 12


def test_the_best_settings_of_a_tool(script: Callable[[str], ModuleType]) -> None:
    tried = []

    def run(workers: int, threads: int) -> dict[str, float]:
        tried.append((workers, threads))
        return {"photos": 10, "seconds": 1 + abs(workers - 2)}

    assert script("side_by_side").best_settings(run)[0] == 2
    assert {workers for workers, _ in tried} == {0, 1, 2, 3}


def test_a_tool_that_does_not_install_is_said(
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    side_by_side = script("side_by_side")
    monkeypatch.setattr(side_by_side, "PEERS", tmp_path / "peers")
    monkeypatch.setattr(side_by_side.venv, "create", lambda *_, **__: None)
    monkeypatch.setattr(side_by_side.subprocess, "run", lambda *_, **__: type("Failed", (), {"returncode": 1}))
    with pytest.raises(SystemExit, match="the other tools could not be installed"):
        side_by_side.peers_python()
    assert not side_by_side.have_peers()
    assert "could not be installed" in (said := capsys.readouterr().err) and "their rows are left empty" in said
