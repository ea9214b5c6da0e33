"""`handlens export`, from a run to a bundle that is checked, by way of onnxruntime; the other targets are slow."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from handlens import bundle
from handlens.cli import app
from handlens.cli.export import drawbacks, show, tell
from handlens.compress import ladder
from handlens.export import job
from handlens.run import Classifier


def export(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=True)
    if done.exception and not isinstance(done.exception, SystemExit):
        return 2, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def test_a_float_bundle_is_written_and_checks(split_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "花 bundle.zip"
    code, stdout, errors = export(split_run, "--photos", tiny_photos, "--out", out, "--json", "--licence", "mine")
    assert code == 0, errors
    card = json.loads(stdout)
    made = bundle.read(out)
    assert (made.runtime, made.precision, made.net) == ("onnx", "float32", "mobilenet_v2")
    assert card["bundle"] == str(out) and card["licence"] == "mine" and "ladder" not in card
    said = CliRunner().invoke(
        app, ["export", str(split_run), "--photos", str(tiny_photos), "--out", str(tmp_path / "again.zip")]
    )
    assert f"handlens predict {tmp_path / 'again.zip'} PHOTO\n" in said.stdout
    assert card["parity"]["num_photos"] == card["splits"]["test"] and card["parity"]["agreement"] == 1
    assert card["parity"]["greatest_difference"] < 1e-3
    assert card["test"]["network"]["top1"] == card["test"]["exported"]["top1"]
    assert len(made.golden) == 8
    checked = CliRunner().invoke(app, ["check", str(out), "--json"])
    assert checked.exit_code == 0 and json.loads(checked.stdout)["ok"]
    photo = next(tiny_photos.rglob("*.jpg"))
    told = CliRunner().invoke(app, ["predict", str(out), str(photo), "--json"])
    assert json.loads(told.stdout)[0]["guesses"][0]["name"] == photo.parent.name
    code, _, errors = export(split_run, "--photos", tiny_photos, "--out", out)
    assert code == 2 and "exists already" in errors


def test_a_rung_that_loses_nothing_has_no_sign(capsys: pytest.CaptureFixture[str]) -> None:
    rung = {"name": "minmax", "failed": "", "top1": 0.95, "drop": 0.0002, "agreement": 1.0, "size_bytes": 1e6,
            "latency_ms": 5.0, "chosen": True, "top1_ci95": (0.93, 0.97)}  # fmt: skip
    made: Any = SimpleNamespace(bundle=SimpleNamespace(card={"ladder": [rung]}), parity=None)
    show(made, of_a_site=True)
    table = capsys.readouterr().out
    assert "+0.0" in table and "-0.0" not in table
    assert "93.0% to 97.0%" in table


def test_a_rung_is_told_with_what_was_asked_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    rung = ladder.Rung(name="minmax", top1=0.875, drop=0.00002, agreement=0.995, size_bytes=10**6, latency_ms=5.0)
    tell(rung)
    tell(dataclasses.replace(rung, drop=1 / 48, agreement=47 / 48, allowed_drop=1 / 48, wanted_agreement=47 / 48))
    many, few = capsys.readouterr().err.splitlines()
    start = "minmax: validation top-1 on four views 87.5% "
    assert many.startswith(f"{start}(+0.00 points, allowed: -0.5), agreement 99.5% (wanted: 99%), 1.00 MB")
    assert few.startswith(f"{start}(-2.08 points, allowed: -2.08), agreement 97.9% (wanted: 97.9%), 1.00 MB")


def test_what_to_type_next_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    made: Any = SimpleNamespace(
        path=Path("my own.zip"),
        bundle=SimpleNamespace(card={"size_bytes": 1, "weights_float32_bytes": 4}, runtime="coreml"),
        parity=None,
    )
    show(made)
    assert capsys.readouterr().out.endswith("next    handlens check 'my own.zip'\n")  # Core ML runs elsewhere


def test_an_int8_bundle_tells_of_its_rungs_and_that_it_is_slower(
    split_run: Path, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What eight bits do to so small a network is not judged here."""

    def measured(exported: Classifier, threads: int, runs: int = 0) -> dict[str, float]:
        return {"median_ms": 3.5 if exported.precision == "int8" else 3.0}

    monkeypatch.setattr(ladder, "SURE_AGREEMENT", 0.0)
    monkeypatch.setattr("handlens.run.bundles.ROUNDED_MARGIN", 1.1)
    monkeypatch.setattr(job, "latency", measured)
    out = tmp_path / "int8"
    code, stdout, errors = export(split_run, "--int8", "--photos", tiny_photos, "--out", out, "--max-drop", "100")
    assert code == 0, errors
    made = bundle.read(out)
    assert made.precision == "int8" and [rung["name"] for rung in made.card["ladder"]] == ["per channel, minmax"]
    assert "per channel, minmax" in stdout and "per channel, minmax: validation top-1" in errors
    assert made.card["size_bytes"] == len(made.artifact["model.onnx"]) < made.card["float32"]["size_bytes"]
    sentence = (
        "slower than float: 3.50 ms a photo in INT8, 3.00 ms in float32, on onnx here; for speed leave out --int8"
    )
    assert sentence in " ".join(stdout.split())
    faster = {**made.card, "latency": {"median_ms": 2.5}}
    assert drawbacks(faster, "onnx") == [] == drawbacks({**made.card, "latency": {"median_ms": 3.2}}, "onnx")
    (larger,) = drawbacks({**faster, "size_bytes": 2_000_000}, "onnx")
    plain_mb = made.card["float32"]["size_bytes"] / 1e6
    assert larger.startswith(f"larger than float: 2.00 MB in INT8, {plain_mb:.2f} MB in float32")
    photo = next(tiny_photos.rglob("*.jpg"))
    assert CliRunner().invoke(app, ["predict", str(out), str(photo)]).exit_code == 0


def test_a_bfloat16_bundle_tells_that_it_is_slower_and_never_that_it_is_larger() -> None:
    card = {
        "precision": "bfloat16",
        "size_bytes": 1001,
        "latency": {"median_ms": 2.0},
        "float32": {"size_bytes": 1000, "latency": {"median_ms": 1.0}},
    }
    (slower,) = drawbacks(card, "openvino")
    assert slower.startswith("slower than float: 2.00 ms a photo in bfloat16, 1.00 ms in float32, on openvino here")
    assert "leave out --bfloat16" in slower
    assert not drawbacks({**card, "latency": {"median_ms": 0.5}}, "openvino")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--to", "onyx"],
            "the target is 'onyx', expected onnx, litert, executorch, openvino, coreml or web; did you mean onnx?",
        ),
        (["--int8", "--float16"], "--int8 and --float16 are given"),
        (["--float16", "--bfloat16", "--to", "openvino"], "--float16 and --bfloat16 are given"),
        (["--bfloat16"], "onnx does not compute in bfloat16; use --to openvino, or leave out --bfloat16"),
        (["--bfloat16", "--to", "coreml"], "coreml does not compute in bfloat16"),
        (["--weights-only"], "--weights-only is given without --int8"),
        (["--max-drop", "1"], "--max-drop and --calibration-photos are for INT8; add --int8"),
        (["--calibration-photos", "64"], "--max-drop and --calibration-photos are for INT8; add --int8"),
        (["--runtime-files", "dist"], "--runtime-files is for --to web; leave it out"),
        (["--to", "executorch", "--int8", "--weights-only"], "has no file with the weights alone in eight bits"),
        (["--to", "executorch", "--float16"], "so float16 makes no file smaller; use --int8"),
        (["--int8", "--weights-only", "--reduce-range"], "--reduce-range is for arithmetic in integers"),
        (["--to", "coreml", "--int8"], "makes no INT8 file for coreml"),
        (["--to", "litert", "--int8", "--reduce-range"], "--reduce-range is for INT8 on onnxruntime; leave it out"),
        (["--reduce-range"], "--reduce-range is for INT8 on onnxruntime; leave it out"),
    ],
)
def test_what_cannot_be_made(
    options: list[str],
    sentence: str,
    split_run: Path,
    tiny_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("handlens.compress.job.own_splits", lambda *_: pytest.fail("after the photos were looked at"))
    code, _, errors = export(split_run, *options, "--photos", tiny_photos, "--out", tmp_path / "out")
    assert code == 2 and sentence in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("onnxscript", []),
        ("onnxruntime", ["--to", "web", "--runtime-files", "DIST"]),
        ("nncf", ["--to", "openvino", "--int8"]),
        ("coremltools", ["--to", "coreml"]),
    ],
)
def test_a_missing_converter_is_told_before_any_work(
    module: str, options: list[str], split_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlens.compress.job.own_splits", lambda *_: pytest.fail("after the photos were looked at"))
    monkeypatch.setattr("handlens.export.web.runtime_files", lambda *_: tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, errors = export(split_run, *options, "--out", tmp_path / "out")
    assert code == 2 and f"this needs {module}, which is not installed; pip install" in errors


def test_a_place_that_cannot_be_written_is_told_before_any_work(
    split_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlens.compress.job.Source.of", None)
    (tmp_path / "file").write_text("")
    code, _, errors = export(split_run, "--int8", "--out", tmp_path / "file" / "out.zip")
    assert code == 2 and "file is no folder" in errors
    for name in ("flowers.onnx", "flowers.TFLITE"):  # what one would take for the network's own file
        code, _, errors = export(split_run, "--out", tmp_path / name)
        assert code == 2 and "name it flowers.zip, or a folder flowers" in errors


def test_a_bundles_site_has_its_weights(tiny: ModuleType, tmp_path: Path) -> None:
    bundle.write(tmp_path / "b.zip", tiny.bundle())
    for ignored in (["--int8"], ["--licence", "MIT"], ["--threads", "2"]):
        code, _, errors = export(tmp_path / "b.zip", "--to", "web", *ignored, "--out", tmp_path / "site")
        assert code == 2 and "whose site has its weights and its card as they are" in errors
    assert not (tmp_path / "site").exists()


def test_a_bundle_that_check_refuses_becomes_no_site(tiny: ModuleType, tmp_path: Path) -> None:
    good = tiny.bundle()
    golden = (dataclasses.replace(good.golden[0], probabilities=(0.0, 0.1, 0.9)), *good.golden[1:])
    bundle.write(tmp_path / "b.zip", dataclasses.replace(good, golden=golden))
    code, _, errors = export(tmp_path / "b.zip", "--to", "web", "--out", tmp_path / "site")
    assert code == 2 and "answers 1 of 3 golden photos differently than the trained network" in errors
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("all_others", [True, False])
def test_photos_to_calibrate_with_are_not_blamed_for_those_of_the_run(
    all_others: bool, split_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    """Where the run's own are gone; some of them in another folder are its own, incomplete."""
    gone = tmp_path / "gone"
    run = without(split_run, tmp_path / "run", gone, lambda *_: False)
    for folder in sorted(path for path in tiny_photos.iterdir() if path.is_dir()):
        for photo in sorted(folder.iterdir())[:4]:
            (tmp_path / "given" / folder.name).mkdir(parents=True, exist_ok=True)
            content = photo.read_bytes()
            (tmp_path / "given" / folder.name / photo.name).write_bytes(content + b"\0" if all_others else content)
    code, _, errors = export(run, "--int8", "--photos", tmp_path / "given", "--out", tmp_path / "out")
    assert code == 2
    if all_others:
        assert f"the photos of the run {run} are no longer in {gone}" in errors
    else:
        assert f"are not in {tmp_path / 'given'} as before" in errors


def test_a_run_whose_photos_are_gone_says_so(split_run: Path, tmp_path: Path) -> None:
    shutil.copytree(split_run, tmp_path / "run")
    code, _, errors = export(tmp_path / "run", "--out", tmp_path / "out")
    assert code == 2 and errors.strip() and not (tmp_path / "out").exists()


def test_a_run_without_its_split_says_so(split_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    shutil.copytree(split_run, tmp_path / "run")
    (tmp_path / "run" / "split.json").unlink()
    code, _, errors = export(tmp_path / "run", "--photos", tiny_photos, "--out", tmp_path / "out")
    assert code == 2 and "has no split.json" in errors


def test_the_recipe_of_a_newer_handlens_is_one_sentence(split_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    from handlens import files

    run = shutil.copytree(split_run, tmp_path / "run")
    files.write_json(run / files.FACTS, {**files.read_json(run / files.FACTS), "recipe": {"new": 1}})
    code, _, errors = export(run, "--photos", tiny_photos, "--out", tmp_path / "out.zip")
    assert code == 2
    assert errors == "the run's recipe names new, which a recipe does not have; use the handlens that made it"


def test_a_class_that_came_later_and_one_that_was_emptied_change_no_label(
    split_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_photos, tmp_path / "photos")
    shutil.copytree(tiny_photos / "blue sky", tmp_path / "photos" / "aster")
    (tmp_path / "photos" / "zinnia").mkdir()
    out = tmp_path / "out.zip"
    code, _, errors = export(split_run, "--photos", tmp_path / "photos", "--out", out)
    assert code == 0, errors
    assert bundle.read(out).card["test"]["network"]["top1"] == 1


def without(run: Path, to: Path, photos: Path, drop: Callable[[str, str], bool]) -> Path:
    """A copy of a run whose split lacks what `drop` (side, path) says, and which knows where its photos are."""
    from handlens import checkpoint, files

    shutil.copytree(run, to)
    facts = checkpoint.read_facts(to)
    files.write_json(to / files.FACTS, facts | {"recipe": {"photos": str(photos)}})
    split = files.read_json(to / "split.json")
    for side in ("train", "validation", "test"):
        split[side] = {path: value for path, value in split[side].items() if not drop(side, path)}
    files.write_json(to / "split.json", split)
    return to


@pytest.mark.parametrize(("side", "options"), [("test", []), ("validation", ["--int8"])])
def test_a_run_that_was_judged_on_nothing(
    side: str, options: list[str], split_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    run = without(split_run, tmp_path / "run", tiny_photos, lambda other, _: other == side)
    code, _, errors = export(run, *options, "--out", tmp_path / "out")
    assert code == 2 and f"has no {side} photos, by which the file is" in errors


def test_a_class_without_validation_photos_is_calibrated_with_training_photos(
    split_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    from handlens import checkpoint
    from handlens.compress.job import own_splits

    run = without(split_run, tmp_path / "run", tiny_photos, lambda side, path: side == "validation" and "花" in path)
    splits, calibration = own_splits(run, checkpoint.load(run), None)
    assert splits["validation"].counts().tolist() == [3, 0, 3]
    assert calibration.counts().tolist() == [3, 6, 3]
    assert set(calibration.paths) <= {*splits["validation"].paths, *splits["train"].paths}


def test_the_photos_of_a_run_that_learned_more_are_found_at_a_new_place(
    split_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    import dataclasses

    from PIL import Image

    from handlens import checkpoint, files, photos
    from handlens.compress.job import own_splits
    from handlens.train import Recipe
    from handlens.train.data import data_of

    root, more = shutil.copytree(tiny_photos, tmp_path / "photos"), tmp_path / "more"
    (more / "花朵").mkdir(parents=True)
    for number in range(4):
        Image.effect_noise((40, 48), 50 + number).save(more / "花朵" / f"{number}.png")
    recipe = Recipe(continue_run=str(tmp_path / "first"), add=str(more))
    for name, of in (("first", Recipe(photos=str(root))), ("run", recipe)):
        shutil.copytree(split_run, tmp_path / name)
        facts = checkpoint.read_facts(tmp_path / name)
        files.write_json(tmp_path / name / files.FACTS, facts | {"recipe": dataclasses.asdict(of)})
    learned = data_of(recipe, None)
    photos.write_split(tmp_path / "run" / "split.json", learned.splits, learned.sha256, 0)
    Path(root).rename(tmp_path / "moved")
    splits, _ = own_splits(tmp_path / "run", checkpoint.load(tmp_path / "run"), tmp_path / "moved")
    assert {name: len(part) for name, part in splits.items()} == {"train": 21, "validation": 10, "test": 9}
    more.rename(tmp_path / "gone")  # of which none is in test
    (tmp_path / "moved").rename(root)
    for place in (None, root):
        told: list[str] = []
        splits, _ = own_splits(tmp_path / "run", checkpoint.load(tmp_path / "run"), place, told.append)
        assert {name: len(part) for name, part in splits.items()} == {"train": 18, "validation": 9, "test": 9}
        assert told == [f"4 photos of {tmp_path / 'run'} are no longer there, none of its test photos"]


def test_calibration_photos_of_two_classes_are_refused(split_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    """Other photos than the run's own, so the run's own must be where its recipe says."""
    from handlens import checkpoint, files

    shutil.copytree(split_run, tmp_path / "run")
    facts = checkpoint.read_facts(tmp_path / "run")
    files.write_json(tmp_path / "run" / files.FACTS, facts | {"recipe": {"photos": str(tiny_photos)}})
    for folder in sorted(path for path in tiny_photos.iterdir() if path.is_dir())[:2]:
        shutil.copytree(folder, tmp_path / "two" / folder.name)
    code, _, errors = export(tmp_path / "run", "--int8", "--photos", tmp_path / "two", "--out", tmp_path / "out")
    assert code == 2 and "the calibration photos have none of" in errors and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["litert", "executorch", "openvino"])
def test_int8_on_the_other_runtimes(
    to: str, split_run: Path, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "SURE_AGREEMENT", 0.0)
    out = tmp_path / "bundle.zip"
    options = ("--to", to, "--int8", "--photos", tiny_photos, "--out", out, "--max-drop", "100")
    code, _, errors = export(split_run, *options)
    assert code == 0, errors
    made = bundle.read(out)
    assert made.runtime == to and made.card["parity"]["num_photos"] > 0
