"""The benchmarks still run: each says what it wants, and those that need no other tools run to their end, small."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from handlens import bundle, photos

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


def test_where_a_step_goes(
    script: Callable[[str], ModuleType], tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = script("step")
    monkeypatch.setattr(step, "RESULTS", tmp_path / "step.json")
    arguments = ["step.py", str(tiny_photos), "--net", "mobilenet_v3_small", "--batch-size", "4", "--px", "32"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--times", "1", "--device", "cpu"])
    step.main()
    ((name, row),) = json.loads((tmp_path / "step.json").read_text("utf-8"))["rows"].items()
    assert name.endswith("mobilenet_v3_small, 4, 32 px")
    parts = row["ms"]
    made = {"a batch made", "of which cutting", "of which TrivialAugment"}
    assert set(parts) == made | {
        "passes", "optimiser", "running average", "validation, 64 photos", "saving, to memory"
    }  # fmt: skip


def test_no_fold_of_an_ablation_knows_the_test_photos(
    script: Callable[[str], ModuleType], tiny_photos: Path, tmp_path: Path
) -> None:
    folds = [photos.scan(path) for path in script("ablation").laid_out(str(tiny_photos), 3, tmp_path)]
    sides = [
        {side: {path for path, of in zip(fold.paths, fold.splits, strict=True) if of == side} for side in fold.splits}
        for fold in folds
    ]
    assert all(set(side) == {"train", "validation", "test"} for side in sides)
    found = photos.scan(tiny_photos)
    own = photos.split(found, photos.examine(found).sha256, 0)
    assert {Path(path).name for path in sides[0]["test"]} == {Path(path).name for path in own["test"].paths}
    assert sides[0]["test"] == sides[1]["test"] == sides[2]["test"]
    assert len({frozenset(side["validation"]) for side in sides}) == 3
    assert all(sum(map(len, side.values())) == len(found) for side in sides)


def test_an_ablation_goes_on_where_it_stopped(
    script: Callable[[str], ModuleType],
    tiny_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ablation = script("ablation")
    done: list[dict[str, object]] = []

    def trained(fold: Path, changes: dict[str, object], options: list[str], out: Path, jobs: int) -> dict[str, object]:
        done.append(changes)
        if len(done) == 4:
            raise SystemExit("the disk is full")
        return {"changes": changes, "validation_top1": 0.5, "validation_loss": 1.0 + 0.25 * bool(changes)}

    monkeypatch.setattr(ablation, "RESULTS", tmp_path / "ablation.json")
    monkeypatch.setattr(ablation, "trained", trained)
    monkeypatch.setattr(
        sys, "argv", ["ablation.py", str(tiny_photos), "--only", "the recipe", "no mixup", "--net", "alexnet"]
    )
    with pytest.raises(SystemExit, match="the disk is full"):
        ablation.main()
    ablation.main()
    assert done == [{}, {"mixup_alpha": 0.0}, {}, {"mixup_alpha": 0.0}, {"mixup_alpha": 0.0}]
    ((of, rows),) = json.loads((tmp_path / "ablation.json").read_text("utf-8")).items()
    assert of == "--net alexnet --mode scratch --weights none --image-px 160"
    assert {name: sorted(row) for name, row in rows["rows"].items()} == {
        "the recipe": ["0", "1"],
        "no mixup": ["0", "1"],
    }
    assert "+0.250" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_of_an_ablation(script: Callable[[str], ModuleType], tiny_photos: Path, tmp_path: Path) -> None:
    ablation = script("ablation")
    (fold,) = ablation.laid_out(str(tiny_photos), 1, tmp_path)
    options = [
        "--net",
        "mobilenet_v3_small",
        "--mode",
        "scratch",
        "--weights",
        "none",
        "--image-px",
        "32",
        "--epochs",
        "2",
    ]
    row = ablation.trained(fold, {"mixup_alpha": 0.0}, options, tmp_path / "run", 1)
    assert row["changes"] == {"mixup_alpha": 0.0} and row["epochs"] == 2 and row["num_validation"] == 3
    assert 0 <= row["validation_top1"] <= 1


@pytest.mark.parametrize("name", ["int8", "int8_kinds", "weights_only", "calibration_photos"])
def test_the_page_on_int8_has_what_was_measured(name: str, script: Callable[[str], ModuleType]) -> None:
    module = script(name)
    results = json.loads((FOLDER / "results" / f"{name}.json").read_text("utf-8"))
    table = module.table(results if name == "int8" else results["rows"])
    page = module.PAGE.read_text("utf-8")
    assert page.partition(f"{module.BEGIN}\n")[2].startswith(table), f"{name} writes it again"


def test_a_cell_that_is_not_met_is_kept_with_its_best(
    script: Callable[[str], ModuleType],
    split_run: Path,
    tiny_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In place of all rungs of the ladder, which take minutes."""
    from handlens.compress import ladder, onnx

    int8 = script("int8")

    def climb(source: Any, to: str, calibration: photos.Photos, *more: Any, **options: Any) -> ladder.Climbed:
        images = ladder.calibration_images(calibration, source, 6)
        artifact = onnx.quantizer(source.folded, source.checkpoint.preprocess, source.facts, images)("minmax", ())
        rung = ladder.Rung(name="minmax", top1=0.5, drop=0.5, agreement=0.5, size_bytes=1, latency_ms=1.0)
        best = ladder.Climbed(rung=rung, artifact=artifact, net=source.folded, rungs=[rung])
        raise ladder.NoRungError("no way to INT8", "leave it out", best)

    monkeypatch.setattr(ladder, "climb", climb)
    cell = int8.one_cell(split_run, "onnx", str(tiny_photos), tmp_path)
    assert cell["why"] == "no way to INT8" and [rung["name"] for rung in cell["ladder"]] == ["minmax"]
    assert cell["int8"]["size_bytes"] < cell["float32"]["size_bytes"] and 0 <= cell["agreement"] <= 1
    assert bundle.read(tmp_path / "run-onnx-int8.zip").golden == ()
    monkeypatch.setattr(int8, "RESULTS", tmp_path / "int8.json")
    int8.write({"cells": [cell]})
    written = json.loads((tmp_path / "int8.json").read_text("utf-8"))
    assert {"onnx", "onnxruntime", "torch", "numpy"} <= written["versions"].keys()
    assert int8.table(written).splitlines()[-1].startswith("| mobilenet_v2, 32 px | onnx |")
