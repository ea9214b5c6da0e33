"""What a bundle's card calls the run and its photos, and what is told of these."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlens import bundle, files
from handlens.compress import job
from handlens.errors import HandlensError
from handlens.export.job import Source
from handlens.run import bundles, openvino_runtime
from handlens.train import several
from handlens.train.data import keep_earlier

pytest.importorskip("onnx")


def made_by(split_run: Path, folder: Path, recipe: dict[str, Any]) -> Path:
    """A run as one of that recipe would leave it, but for what was added."""
    shutil.copytree(split_run, folder)
    facts = json.loads((folder / files.FACTS).read_text(encoding="utf-8"))
    (folder / files.FACTS).write_text(json.dumps({**facts, "recipe": recipe}), encoding="utf-8")
    return folder


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """exported(run): what an export of the run would begin with."""
    monkeypatch.setattr(Source, "float32", lambda *_: {})
    monkeypatch.setattr("handlens.export.job.finish", lambda source, *_, **__: source)
    return lambda run, **given: job.export(run, out=tmp_path / "bundle.zip", **given)


def test_the_card_names_all_photos_of_a_run(
    split_run: Path, tiny_photos: Path, tmp_path: Path, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made_by(split_run, tmp_path / "first", {"photos": str(tiny_photos)})
    source = exported(first)
    assert (source.name, source.data) == ("first", tiny_photos.name)

    random = np.random.default_rng(0)
    for index in range(3):
        photo = tmp_path / "garden" / "blue sky" / f"{index}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(photo)
    recipe = {"continue_run": str(first), "add": str(tmp_path / "garden")}
    second = made_by(split_run, tmp_path / "second", recipe)
    keep_earlier(second, first)
    third = made_by(split_run, tmp_path / "third", {"continue_run": str(second)})
    keep_earlier(third, second)
    shutil.rmtree(first)
    for run in (second, third):
        assert exported(run).data == f"{tiny_photos.name} + garden"
    monkeypatch.chdir(third)
    assert exported(os.curdir).name == "third"


def test_photos_that_have_another_class_now_are_told(
    split_run: Path, tiny_photos: Path, tmp_path: Path, exported: Any
) -> None:
    photos, told = tmp_path / "photos", list[str]()
    shutil.copytree(tiny_photos, photos)
    run = made_by(split_run, tmp_path / "run", {"photos": str(photos)})
    exported(run, note=told.append)
    assert not told
    (photos / "花朵" / "00.jpg").rename(photos / "blue sky" / "moved.jpg")
    exported(run, note=told.append)
    exported(run, photos=photos, note=told.append)
    assert told == [f"1 photo of {run} has another class now (blue sky/moved.jpg ...)"] * 2


def test_photos_that_are_not_the_runs_own_are_told(
    split_run: Path, tiny_photos: Path, tmp_path: Path, exported: Any
) -> None:
    run, told = made_by(split_run, tmp_path / "run", {"photos": str(tiny_photos)}), list[str]()
    (tmp_path / "others" / "blue sky").mkdir(parents=True)
    Image.new("RGB", (50, 40), (1, 2, 3)).save(tmp_path / "others" / "blue sky" / "new.png")
    exported(run, photos=tmp_path / "others", note=told.append)
    sentence = "holds others than the run's own photos: INT8 is calibrated with them, no more"
    assert told == [f"{tmp_path / 'others'} {sentence}"]


@pytest.mark.parametrize("max_drop", [-1, math.nan, 2])
def test_a_loss_that_cannot_be_allowed_is_told_before_anything_is_tried(
    split_run: Path, exported: Any, monkeypatch: pytest.MonkeyPatch, max_drop: float
) -> None:
    monkeypatch.setattr(job.checkpoint, "load", lambda *_: pytest.fail("the run was read"))
    with pytest.raises(HandlensError, match=f"max_drop is {max_drop}, expected a fraction of 0 to 1"):
        exported(split_run, precision="int8", max_drop=max_drop)


def test_bfloat16_is_made_where_it_can_be_proven(
    split_run: Path, tiny_photos: Path, exported: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(openvino_runtime, "computes_bfloat16", lambda: False)
    with pytest.raises(HandlensError, match="OpenVINO does not compute in bfloat16 on this processor"):
        exported(split_run, to="openvino", precision="bfloat16")
    monkeypatch.undo()
    monkeypatch.setattr("handlens.export.job.AGREEMENT", 0.0)
    if not openvino_runtime.computes_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    monkeypatch.setattr("handlens.run.bundles.ROUNDED_MARGIN", 1.1)
    out = tmp_path / "bundle.zip"
    with pytest.raises(HandlensError, match=r"points of top-1 below the network.*leave out --bfloat16"):
        job.export(split_run, "openvino", "bfloat16", out=out, photos=tiny_photos)  # whose answers hang on little
    job.export(split_run, "openvino", "bfloat16", out=out, photos=tiny_photos, max_drop=1)
    made = bundle.read(out)
    assert made.precision == "bfloat16" and made.card["float32"]["latency"]["median_ms"] > 0
    assert made.card["parity"]["greatest_difference"] > 1e-3 and made.card["parity"]["tolerance"] is None
    assert all(answer.ok for answer in bundles.check(out).answers) and len(made.golden)


def test_a_fold_is_called_as_what_it_was_cut_from(tmp_path: Path) -> None:
    several._store(several.Plan(tmp_path, "folds", str(tmp_path / "garden"), {}, ()))
    assert job._name(str(tmp_path / "fold-1.csv")) == "garden"
    assert job._name(str(tmp_path / "labels.csv")) == "labels.csv"
    assert job._name("flower_photos") == "flower_photos" and job._name("") == ""


@pytest.mark.parametrize("threads", [-1, "2"])
def test_threads_that_there_cannot_be_are_refused_at_once(tmp_path: Path, exported: Any, threads: Any) -> None:
    with pytest.raises(HandlensError, match=r"threads is .*expected 1 to 1024, or 0"):
        exported(tmp_path / "no run", threads=threads)
