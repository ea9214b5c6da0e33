"""`handlens evaluate`: the figures of a run, on its own test photos or on others."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image, ImageEnhance

from handlens import bundle, checkpoint, files, photos
from handlens.photos.split import contents
from handlens.run import UNCALIBRATED
from handlens.train import Recipe
from handlens.train.data import data_of, look

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate(command: Run) -> Run:
    return functools.partial(command, "evaluate")


@pytest.fixture
def run(tiny_run: Path, tiny_photos: Path, tmp_path: Path) -> Path:
    """A run as training leaves it: with its recipe, its split, and curves."""
    folder = tmp_path / "run"
    saved = checkpoint.load(tiny_run)
    saved.recipe = dataclasses.asdict(Recipe(net="mobilenet_v2", photos=str(tiny_photos)))
    checkpoint.save(folder, saved)
    found = photos.scan(tiny_photos)
    sha256 = photos.examine(found).sha256
    photos.write_split(folder / "split.json", photos.split(found, sha256), sha256, 0)
    Image.new("RGB", (20, 10)).save(folder / "curves.png")
    return folder


def test_json_is_what_scripts_rely_on(evaluate: Run, tiny_run: Path, tiny_photos: Path) -> None:
    code, out, err = evaluate(tiny_run, tiny_photos, "--json")
    assert (code, err) == (0, f"{UNCALIBRATED}\n")
    facts = json.loads(out)
    assert {"top1", "top1_ci95", "top5", "num_photos", "per_class", "classes"} <= set(facts)
    assert facts["top1"] == 1.0
    assert facts["top1_ci95"][0] < facts["top1"] <= facts["top1_ci95"][1] <= 1
    assert facts["top5"] is None
    assert facts["num_photos"] == 36
    assert facts["classes"] == ["blue sky", "花朵", "🌿 leaf"]
    assert facts["per_class"]["花朵"]["support"] == 12


def test_uncalibrated_probabilities_are_said_to_be(
    evaluate: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    report, fitted = tmp_path / "r.html", tmp_path / "run"
    checkpoint.save(fitted, dataclasses.replace(checkpoint.load(tiny_run), calibration={"temperature": 1.0}))
    for run, said in ((tiny_run, UNCALIBRATED), (fitted, "")):
        code, out, err = evaluate(run, tiny_photos, "--json", "--report", report, "--no-saliency", "--no-nearest")
        assert code == 0
        facts = json.loads(out)
        assert (facts["calibrated"], facts["note"]) == (not said, said)
        assert (UNCALIBRATED in err, UNCALIBRATED in report.read_text("utf-8")) == (bool(said),) * 2


def test_table(evaluate: Run, tiny_run: Path, tiny_photos: Path) -> None:
    code, out, _ = evaluate(tiny_run, tiny_photos)
    assert code == 0
    assert out.startswith("top-1 100.0% (95 % interval ")
    assert "on 36 photos" in out.splitlines()[0]
    assert any(line.split() == ["花朵", *["100.0%"] * 3, "12"] for line in out.splitlines())


@pytest.mark.parametrize(("split", "count"), [("", 3), ("test", 3), ("validation", 3), ("train", 30)])
def test_without_photos_the_runs_own_split(evaluate: Run, run: Path, split: str, count: int) -> None:
    code, out, err = evaluate(run, "--json", *(["--split", split] if split else []))
    assert code == 0, err
    facts = json.loads(out)
    assert facts["num_photos"] == count
    assert f"own {split or 'test'} split (30 train, 3 validation, 3 test)" in facts["split"]
    assert facts["num_seen_in_training"] == (0 if split in ("", "test") else count)
    cautions = {"validation": "by these validation photos its epoch was chosen", "train": "trained on these photos"}
    assert cautions.get(split, "") in facts["caution"] and bool(facts["caution"]) == (split in cautions)
    assert not facts["caution"] or facts["caution"] in err.splitlines()


def test_the_runs_photos_at_a_new_place(evaluate: Run, run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_photos, tmp_path / "moved 🌼")
    code, out, _ = evaluate(run, tmp_path / "moved 🌼", "--split", "test", "--json")
    assert code == 0
    assert json.loads(out)["num_photos"] == 3


def test_photos_that_were_trained_on_are_said_to_be(
    evaluate: Run, run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    code, out, err = evaluate(run, tiny_photos, "--json")
    assert code == 0
    assert json.loads(out)["num_seen_in_training"] == 33
    assert "33 of these 36 photos were trained on" in err
    assert json.loads(out)["caution"] in err.splitlines()
    more = tmp_path / "more"
    shutil.copytree(tiny_photos, more)
    (more / "花朵" / "broken.jpg").write_bytes(b"no photo")
    code, out, err = evaluate(run, more)
    assert "33 of these 36 photos were trained on" in err and "on 36 photos" in out


def as_png(photo: Image.Image, place: Path) -> None:
    photo.save(place.with_suffix(".png"))


def as_sent(photo: Image.Image, place: Path) -> None:
    """Smaller, recompressed, a little brighter."""
    sent = ImageEnhance.Brightness(photo).enhance(1.05).resize((44, 36), Image.Resampling.BICUBIC)
    sent.save(place, quality=80)


def saved_anew(photos: Path, folder: Path, save: Callable[[Image.Image, Path], None]) -> Path:
    for path in photos.rglob("*.jpg"):
        place = folder / path.relative_to(photos)
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as photo:
            save(photo, place)
    return folder


def test_copies_are_counted_once_and_told_of(evaluate: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_photos, tmp_path / "photos")
    for path in tiny_photos.rglob("*.jpg"):
        shutil.copy(path, tmp_path / "photos" / path.parent.name / f"again {path.name}")
    code, out, err = evaluate(tiny_run, tmp_path / "photos", "--report", tmp_path / "report.html")
    told = "36 of the 72 photos show again, or nearly, what another one does: the intervals are those of 36 different"
    assert code == 0 and told in err and told in (tmp_path / "report.html").read_text("utf-8")
    once = evaluate(tiny_run, tiny_photos)
    assert "show again" not in once[2] and out.splitlines()[0].split(")")[0] == once[1].splitlines()[0].split(")")[0]


@pytest.mark.parametrize("save", [as_png, as_sent])
def test_photos_that_were_saved_anew_are_known_again(
    evaluate: Run, run: Path, tiny_photos: Path, tmp_path: Path, save: Callable[[Image.Image, Path], None]
) -> None:
    code, out, err = evaluate(run, saved_anew(tiny_photos, tmp_path / "anew", save), "--json")
    assert code == 0, err
    told = "33 of these 36 photos were trained on or chosen by, all of them saved anew or nearly the same: "
    assert json.loads(out)["num_seen_in_training"] == 33
    assert json.loads(out)["caution"] == f"{told}the figures flatter"


def test_copies_of_photos_that_are_gone_are_said_not_to_be_known(
    evaluate: Run, run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    saved = checkpoint.load(run)
    for place, found in ((tmp_path / "nowhere", 0), ("flower_photos", 0)):  # which must not be downloaded
        checkpoint.save(run, dataclasses.replace(saved, recipe={**saved.recipe, "photos": str(place)}))
        code, out, err = evaluate(run, saved_anew(tiny_photos, tmp_path / "anew", as_png), "--json")
        assert code == 0 and json.loads(out)["num_seen_in_training"] == found
        assert "no longer where it was: copies saved anew, or nearly the same, are not known again" in err


def test_the_recipe_of_a_newer_handlens_is_one_sentence(evaluate: Run, run: Path) -> None:
    facts = json.loads((run / "handlens.json").read_text("utf-8"))
    facts["recipe"]["new"] = 1
    (run / "handlens.json").write_text(json.dumps(facts), "utf-8")
    code, out, err = evaluate(run, "--split", "test")
    assert (code, out) == (2, "")
    assert err == "handlens: the run's recipe names new, which a recipe does not have; use the handlens that made it\n"


ADVICE = "they are the run's own photos: --split test judges those that chose nothing"


def test_the_runs_own_photos_are_judged_by_those_that_chose_nothing(
    evaluate: Run, run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    moved, report = tmp_path / "moved", tmp_path / "r.html"
    shutil.copytree(tiny_photos, moved)
    _, out, err = evaluate(run, moved, "--json", "--report", report, "--no-saliency", "--no-nearest")
    caution = json.loads(out)["caution"]
    assert caution.endswith(f": the figures flatter; {ADVICE}")
    assert caution in err.splitlines() and "--split test judges those" in report.read_text("utf-8")
    code, out, err = evaluate(run, moved, "--split", "test", "--json")
    assert (code, json.loads(out)["caution"]) == (0, ""), err
    (moved / "花朵" / "00.jpg").unlink()  # now --split test would only say what is missing
    _, out, _ = evaluate(run, moved, "--json")
    assert "were trained on" in json.loads(out)["caution"] and ADVICE not in json.loads(out)["caution"]


@pytest.mark.parametrize(("of", "told"), [("test", True), ("validation", False)])
def test_a_photo_that_has_another_class_now_is_told(
    evaluate: Run, run: Path, tiny_photos: Path, tmp_path: Path, of: str, told: bool
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(tiny_photos, folder)
    saved = checkpoint.load(run)
    saved.recipe["photos"] = str(folder)
    checkpoint.save(run, saved)
    path = next(path for path in files.read_json(run / files.SPLIT)[of] if not path.startswith("blue sky/"))
    (folder / path).rename(folder / "blue sky" / "moved.jpg")
    report = tmp_path / "report.html"
    code, out, err = evaluate(run, "--json", "--report", report)
    assert code == 0, err
    sentence = "1 photo of the test split has another class now (blue sky/moved.jpg ...)"
    assert (sentence in json.loads(out)["caution"]) == (sentence in report.read_text("utf-8")) == told
    assert f"1 photo of {run} has another class now (blue sky/moved.jpg ...)" in err


@pytest.fixture
def with_broken(run: Path, tiny_photos: Path, tmp_path: Path) -> Callable[[int, bool], None]:
    """Breaks so many photos that are in no split of the run's folder; told: as its training has said it."""

    def damage(number: int, told: bool) -> None:
        folder = tmp_path / "with broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_photos, folder)
        for index in range(number):
            (folder / "花朵" / f"broken{index}.jpg").write_bytes(b"no photo")
        shutil.copy(tiny_photos / "花朵" / "00.jpg", folder / "blue sky" / "copy.jpg")
        saved = checkpoint.load(run)
        saved.recipe["photos"] = str(folder)
        saved.metrics["notes"] = list(look(str(folder), None)[2]) if told else []
        checkpoint.save(run, saved)

    return damage


@pytest.mark.parametrize(("number", "told"), [(2, True), (5, True), (2, False)])
def test_what_training_left_out_is_told_shortly_and_listed(
    evaluate: Run,
    run: Path,
    with_broken: Callable[[int, bool], None],
    tmp_path: Path,
    number: int,
    told: bool,
) -> None:
    with_broken(number, told)
    code, out, err = evaluate(run, "--json", "--report", tmp_path / "r.html")
    assert code == 0, err
    left_out = json.loads(out)["left_out"]
    assert [one["photo"] for one in left_out] == [f"花朵/broken{index}.jpg" for index in range(number)]
    assert all("is not a photo that can be read" in one["error"] for one in left_out)
    assert f"These {number} could not be read" in (tmp_path / "r.html").read_text("utf-8")
    lines = [line for line in err.splitlines() if "left out" in line]
    if not told:
        assert [line.partition(":")[0] for line in lines] == [f"left out {one['photo']}" for one in left_out]
    elif number > 3:
        assert len(lines) == 1 and lines[0].startswith("5 photos are left out, as in training (the first: 花朵/broken0")
    else:
        assert [line.split(": ")[:2] for line in lines] == [
            ["left out, as in training", one["photo"]] for one in left_out
        ]
    assert ("lies in two classes" in err) == (not told)


def test_photos_with_split_folders(evaluate: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        shutil.copytree(tiny_photos, tmp_path / name)
    (tmp_path / "test" / "花朵" / "00.jpg").unlink()
    for options, count in (([], 35), (["--split", "train"], 36), (["--split", "all"], 71)):
        code, out, _ = evaluate(tiny_run, tmp_path, "--json", *options)
        assert code == 0
        assert json.loads(out)["num_photos"] == count


def test_classes_are_matched_by_name_not_by_position(
    evaluate: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_photos / "🌿 leaf", tmp_path / "🌿 leaf")  # alone it would be class 0
    shutil.copytree(tiny_photos / "花朵", tmp_path / "花朵")
    code, out, _ = evaluate(tiny_run, tmp_path, "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["top1"] == 1.0
    assert facts["per_class"]["blue sky"] == {
        "precision": None, "recall": None, "f1": None, "support": 0, "precision_ci95": None, "recall_ci95": None,
    }  # fmt: skip
    assert any(line.split() == ["blue", "sky", *"–––", "0"] for line in evaluate(tiny_run, tmp_path)[1].splitlines())


def test_report(evaluate: Run, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "reports" / "r.html"
    code, out, err = evaluate(run, "--report", path, "--json")
    assert code == 0
    json.loads(out)
    assert str(path) in err
    html = path.read_text(encoding="utf-8")
    assert "run&#39;s own test split (30 train, 3 validation, 3 test)" in html
    for expected in ("<h2>Training</h2>", "Recipe", "head_views", "Versions", "torch"):
        assert expected in html


def test_a_report_explains_mistakes(evaluate: Run, run: Path, tmp_path: Path, tiny_photos: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny_photos / "花朵", wrong / "blue sky")
    code, _, err = evaluate(run, wrong, "--report", tmp_path / "r.html", "--json")
    assert code == 0, err
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert html.count("What speaks for 花朵 in this photo") == 12
    assert html.count('alt="Training photo of ') == 36
    assert html.count("Looks most like these training photos: ") == 12
    code, _, err = evaluate(run, wrong, "--report", tmp_path / "r.html", "--no-saliency", "--no-nearest")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert code == 0 and 'alt="Photo of ' in html
    assert "What speaks for" not in html and "Looks most like" not in html
    for option in ("--saliency", "--nearest"):
        code, out, err = evaluate(run, option, "--json")
        assert (code, out) == (2, "")
        assert f"{option} is shown in the report; add --report FILE" in err


def test_training_photos_that_are_gone(evaluate: Run, run: Path, tmp_path: Path, tiny_photos: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny_photos / "花朵", wrong / "blue sky")
    facts = checkpoint.load(run)
    facts.recipe["photos"] = str(tmp_path / "nowhere")
    checkpoint.save(run, facts)
    code, _, err = evaluate(run, wrong, "--report", tmp_path / "r.html", "--no-saliency")
    assert code == 0
    assert "the report goes without the nearest training photos" in err and "nowhere" in err
    assert "Looks most like" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_nets_name_and_a_weight_file(evaluate: Run, tmp_path: Path, tiny_photos: Path) -> None:
    import safetensors.torch

    from handlens import nets

    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(nets.create("mobilenet_v2", 3, width=0.35).state_dict(), path)
    code, out, err = evaluate("mobilenet_v2", "--weights", path, tiny_photos, "--json")
    assert code == 0
    assert json.loads(out)["classes"] == ["blue sky", "花朵", "🌿 leaf"]
    assert "sorted order" in err
    assert json.loads(out)["calibrated"] is None  # nobody knows
    safetensors.torch.save_file(nets.create("mobilenet_v2", 4, width=0.35).state_dict(), path)
    code, out, err = evaluate("mobilenet_v2", "--weights", path, tiny_photos, "--json")
    assert (code, out) == (2, "")
    assert "gives 4 classes, the photos have 3" in err


def test_a_runs_weight_file_has_the_runs_classes_in_their_order(
    evaluate: Run, run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    saved = checkpoint.load(run)
    order = (2, 0, 1)  # as where classes were added later
    last = saved.net.classifier[-1]
    for values in (last.weight.data, last.bias.data):
        values.copy_(values[list(order)].clone())
    classes = tuple(saved.classes[k] for k in order)
    checkpoint.save(tmp_path / "later", dataclasses.replace(saved, classes=classes))
    code, out, err = evaluate(saved.name, "--weights", tmp_path / "later" / "model.safetensors", tiny_photos, "--json")
    assert code == 0, err
    assert json.loads(out)["top1"] == 1.0 and json.loads(out)["classes"] == list(classes)
    assert "the names of the classes are those of" in err


def test_photos_of_a_run_that_it_learned_from_are_said_to_be_seen(
    evaluate: Run, run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    saved = checkpoint.load(run)
    recipe = {**saved.recipe, "weights": str(run / "model.safetensors")}
    checkpoint.save(tmp_path / "second", dataclasses.replace(saved, recipe=recipe))
    code, out, err = evaluate(tmp_path / "second", tiny_photos, "--json")
    assert code == 0 and json.loads(out)["num_seen_in_training"] == 33
    assert "33 of these 36 photos were trained on or chosen by" in err


def test_test_photos_that_are_copies_of_what_a_run_behind_has_learned_are_told(
    evaluate: Run, run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    anew, saved = saved_anew(tiny_photos, tmp_path / "anew", as_sent), checkpoint.load(run)
    recipe = {**saved.recipe, "photos": str(anew), "weights": str(run / "model.safetensors")}
    checkpoint.save(tmp_path / "second", dataclasses.replace(saved, recipe=recipe))
    found = photos.scan(anew)
    sha256 = photos.examine(found).sha256
    splits = photos.split(found, sha256, seed=1)
    photos.write_split(tmp_path / "second" / "split.json", splits, sha256, 1)
    learned = json.loads((run / "split.json").read_text("utf-8"))
    known = [path for path in splits["test"].paths if path in learned["train"] or path in learned["validation"]]
    code, out, err = evaluate(tmp_path / "second", "--json")
    assert code == 0 and known, err
    assert json.loads(out)["num_seen_in_training"] == len(known)
    assert "trained on or chosen by, all of them saved anew or nearly the same: the figures flatter" in err
    _, out, _ = evaluate(tmp_path / "second", anew, "--json")
    assert json.loads(out)["num_seen_in_training"] == 33 + len(known) and ADVICE not in json.loads(out)["caution"]


def test_what_is_known_is_put_together_once(
    evaluate: Run, run: Path, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each photo."""
    unions = []

    class Known(set[str]):
        def __or__(self, other: Any) -> Any:
            unions.append(1)
            return Known(set.__or__(self, other))

    monkeypatch.setattr("handlens.train.seen.contents", lambda *given: Known(contents(*given)))
    code, out, _ = evaluate(run, saved_anew(tiny_photos, tmp_path / "anew", as_png), "--json")
    assert code == 0 and json.loads(out)["num_seen_in_training"] == 33
    assert len(unions) < 5


def test_added_photos_whose_folder_is_gone_are_no_matter_to_the_test(evaluate: Run, run: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "花朵").mkdir(parents=True)
    for number in range(4):
        Image.effect_noise((40, 48), 50 + number).save(tmp_path / "more" / "花朵" / f"{number}.png")
    recipe, saved = Recipe(continue_run=str(run), add=str(tmp_path / "more")), checkpoint.load(run)
    data = data_of(recipe, None)
    checkpoint.save(tmp_path / "second", dataclasses.replace(saved, recipe=dataclasses.asdict(recipe)))
    photos.write_split(tmp_path / "second" / "split.json", data.splits, data.sha256, 0)
    (tmp_path / "more").rename(tmp_path / "gone")
    code, out, err = evaluate(tmp_path / "second", "--json")
    assert (code, json.loads(out)["num_photos"]) == (0, 3)
    assert f"second added are no longer in {tmp_path / 'more'}, of which it has 3 in train and 1 in validation" in err
    code, _, err = evaluate(tmp_path / "second", "--split", "train")
    assert code == 2 and "put them back, or say where they are now as `add` in" in err


def test_a_folder_of_the_nets_name_is_no_run_where_weights_are_given(
    evaluate: Run, run: Path, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = checkpoint.load(run)
    (tmp_path / saved.name).mkdir()
    others, known = tmp_path / "others", tmp_path / "known"
    for name in saved.classes:
        shutil.copytree(tiny_photos / name, known / name)
    shutil.copytree(known / saved.classes[0], others)
    for path in list(others.iterdir())[:6]:  # no longer among the labelled photos, but in the other run's split
        (known / saved.classes[0] / path.name).unlink()
    for path in list(others.iterdir())[6:]:
        path.unlink()
    shutil.copy(run / "split.json", tmp_path / saved.name / "split.json")
    monkeypatch.chdir(tmp_path)
    code, out, err = evaluate(saved.name, "--weights", run / "model.safetensors", known, "--unknown", others, "--json")
    assert code == 0, err
    assert json.loads(out)["unknown"]["num_outside"] == 6


def test_photos_in_this_folder_have_its_name(
    evaluate: Run, tiny_run: Path, tiny_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_photos)
    assert f"; all photos of {tiny_photos.name}" in evaluate(tiny_run, ".")[1]


def test_other_classes_are_refused_with_the_difference(
    evaluate: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_photos / "花朵", tmp_path / "flowers")
    shutil.copytree(tiny_photos / "blue sky", tmp_path / "blue sky")
    code, out, err = evaluate(tiny_run, tmp_path, "--json")
    assert (code, out) == (2, "")
    assert f"{tmp_path} has classes that are not among the expected ones: 'flowers'; " in err
    assert "missing" not in err  # a class without photos is no fault


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nope"], "there is no run or bundle nope"),
        (["RUN", "nope"], "there is no folder nope"),
        (["RUN"], "has no split.json; name a folder of photos"),
        (
            ["RUN", "PHOTOS", "--split", "tset"],
            "--split is 'tset', expected train, validation, test or all; did you mean test?",
        ),
        (["RUN", "PHOTOS", "--split", "test"], "has no split.json"),
        (["RUN", "--split", "all"], "--split all needs photos"),
        (["mobilenet_v2", "--weights", "w.pth"], "name a folder of photos"),
    ],
)
def test_bad_input_is_one_sentence(
    evaluate: Run,
    tiny_run: Path,
    tiny_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(tiny_run), "PHOTOS": str(tiny_photos)}
    code, out, err = evaluate(*(places.get(argument, argument) for argument in arguments), "--json")
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("options", [[], ["--split", "all"]])
def test_a_suggested_command_can_be_typed(
    evaluate: Run, tiny_run: Path, tiny: ModuleType, tmp_path: Path, options: list[str]
) -> None:
    name = tmp_path / "my own.zip" if not options else tmp_path / "my run"
    if options:
        shutil.copytree(tiny_run, name)
    else:
        bundle.write(name, tiny.bundle())
    code, _, err = evaluate(name, *options)
    assert code == 2
    command = err.strip().partition("; ")[2]
    assert shlex.split(command) == ["handlens", "evaluate", str(name), "PHOTOS", *options]


def test_a_damaged_photo_is_left_out_and_named(
    evaluate: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_photos, tmp_path / "photos")
    (tmp_path / "photos" / "花朵" / "00.jpg").write_bytes(b"no photo")
    code, out, err = evaluate(tiny_run, tmp_path / "photos")
    assert code == 0
    assert "on 35 photos" in out
    assert "left out: 花朵/00.jpg" in err


def test_a_report_that_cannot_be_written(evaluate: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = evaluate(tiny_run, tiny_photos, "--report", tmp_path / "file" / "r.html", "--json")
    assert (code, out) == (2, "")
    assert "file is no folder" in err
    code, out, err = evaluate(tiny_run, tiny_photos, "--report", tmp_path / "photo.jpg")
    assert (code, out) == (2, "") and not (tmp_path / "photo.jpg").exists()
    assert "photo.jpg would be written, expected a name that ends in .html or .htm" in err


@pytest.fixture
def grey_photos(tmp_path: Path) -> Path:
    folder = tmp_path / "others"
    folder.mkdir()
    for index in range(6):
        Image.new("RGB", (40, 48), (118 + index, 125, 120)).save(folder / f"{index}.png")
    return folder


def test_unknown_photos_and_sets(
    evaluate: Run, run: Path, tiny_photos: Path, grey_photos: Path, tmp_path: Path
) -> None:
    saved = checkpoint.load(run)
    checkpoint.save(run, dataclasses.replace(saved, rejection={"kind": "energy", "threshold": 6.0}))
    report = tmp_path / "r.html"
    code, out, err = evaluate(run, "--unknown", grey_photos, "--coverage", 0.7, "--json", "--report", report)
    assert code == 0, err
    facts = json.loads(out)
    assert facts["unknown"]["num_outside"] == 6
    assert 0.5 < facts["unknown"]["auroc"] <= 1.0
    assert facts["unknown"]["threshold"] == 6.0
    assert facts["unknown"]["true_accept"] == 1.0
    assert facts["coverage"]["promised"] == 0.7
    assert facts["coverage"]["num_validation"] == 3
    sets = facts["coverage"]["sets"]
    assert {Path(one["photo"]).parent.name for one in sets} == set(facts["classes"])
    assert len([one for one in sets if not one["classes"]]) == facts["coverage"]["sizes"]["0"] == 3  # the limit is high
    assert "ece" in facts["calibration"] and "before" not in facts["calibration"]  # a run without a temperature
    html = report.read_text("utf-8")
    for heading in ("None of the classes", "Sets of classes", "What its confidence means"):
        assert f"<h2>{heading}</h2>" in html
    code, out, _ = evaluate(run, "--coverage", 0.7)
    assert "calibration error" in out and "sets that hold the right class" in out
    assert ["empty", "sets:", "no", "class", "reaches", "it", "3"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize("num_validation", [3, 0])
def test_too_few_photos_for_sets_do_not_end_the_rest(
    evaluate: Run, run: Path, tmp_path: Path, num_validation: int
) -> None:
    split = json.loads((run / "split.json").read_text("utf-8"))
    split["validation"] = dict(list(split["validation"].items())[:num_validation])
    (run / "split.json").write_text(json.dumps(split), encoding="utf-8")
    report = tmp_path / "r.html"
    code, out, err = evaluate(run, "--coverage", 0.99, "--json", "--report", report)
    assert code == 0, err
    facts = json.loads(out)
    reason = f"{num_validation} validation photos cannot promise a coverage of 0.99, 99 are needed"
    assert facts["coverage"] is None and facts["top1"] == 1.0
    assert reason in facts["note"] and reason in report.read_text("utf-8")
    assert len([line for line in err.splitlines() if reason in line]) == 1


def test_unknown_photos_without_a_threshold_are_judged_by_one_of_their_own(
    evaluate: Run, run: Path, grey_photos: Path, tmp_path: Path
) -> None:
    report = tmp_path / "r.html"
    code, out, err = evaluate(run, "--unknown", grey_photos, "--json", "--report", report)
    assert code == 0, err
    found = json.loads(out)["unknown"]
    assert "calls nothing unknown" in found["caution"] and found["caution"] in err
    assert "would be called unknown: no threshold came with it" in report.read_text("utf-8")


def test_a_bundle_does_not_tell_which_photos_chose_its_threshold(
    evaluate: Run, tiny: ModuleType, tiny_photos: Path, grey_photos: Path, tmp_path: Path
) -> None:
    rejection = {"kind": "energy", "threshold": 6.0}
    bundle.write(tmp_path / "b.zip", dataclasses.replace(tiny.bundle(), rejection=rejection))
    code, out, err = evaluate(tmp_path / "b.zip", tiny_photos, "--unknown", grey_photos, "--json")
    assert code == 0, err
    caution = json.loads(out)["unknown"]["caution"]
    assert caution.startswith("a bundle does not tell which photos chose its threshold") and caution in err
    assert "is called unknown: a bundle" in evaluate(tmp_path / "b.zip", tiny_photos, "--unknown", grey_photos)[1]


def test_unknown_photos_that_chose_the_threshold_do_not_judge_it(
    evaluate: Run, run: Path, grey_photos: Path, tmp_path: Path
) -> None:
    saved = checkpoint.load(run)
    checkpoint.save(run, dataclasses.replace(saved, rejection={"kind": "energy", "threshold": 6.0}))
    contents = [files.sha256_of(path) for path in sorted(grey_photos.iterdir())]
    grey_photos = grey_photos.rename(grey_photos.with_name("elsewhere"))  # they are known by content
    (run / "unknown.json").write_text(json.dumps({"chose": contents[::2]}), "utf-8")
    (grey_photos / "broken.jpg").write_bytes(b"no photo")
    code, out, err = evaluate(run, "--unknown", grey_photos, "--json")
    assert code == 0, err
    found = json.loads(out)["unknown"]
    assert (found["num_outside"], found["caution"]) == (3, "")
    assert f"3 of the 6 photos in {grey_photos} chose the threshold in training: the others are judged" in err
    assert "left out of the unknown photos: broken.jpg is not a photo that can be read" in err
    (run / "unknown.json").write_text(json.dumps({"chose": contents}), "utf-8")
    code, out, err = evaluate(run, "--unknown", grey_photos, "--json")
    assert (code, out) == (2, "")
    assert "none is left to judge by" in err


def test_a_class_that_came_later_is_no_matter_to_the_runs_own_split(
    evaluate: Run, run: Path, tiny_photos: Path, grey_photos: Path, tmp_path: Path
) -> None:
    before = json.loads(evaluate(run, "--json")[1])
    root = Path(shutil.copytree(tiny_photos, tmp_path / "photos"))
    shutil.copytree(grey_photos, root / "another")
    (root / "empty").mkdir()
    (root / "ruin").mkdir()
    (root / "ruin" / "a.jpg").write_bytes(b"no photo")
    saved = checkpoint.load(run)
    checkpoint.save(run, dataclasses.replace(saved, recipe={**saved.recipe, "photos": str(root)}))
    code, out, err = evaluate(run, "--json")
    assert code == 0, err
    assert f"6 photos of {root} came later" in err
    after = json.loads(out)
    assert (after["num_photos"], after["top1"], after["classes"]) == (
        before["num_photos"], before["top1"], before["classes"]
    )  # fmt: skip
    code, out, err = evaluate(run, root, "--split", "test", "--json")
    assert code == 0, err
    assert json.loads(out)["top1"] == before["top1"]


def test_photos_of_a_run_that_were_moved(evaluate: Run, run: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(run)
    checkpoint.save(run, dataclasses.replace(saved, recipe={**saved.recipe, "photos": str(tmp_path / "gone")}))
    code, _, err = evaluate(run)
    assert code == 2
    assert f"the photos of the run {run} are no longer in {tmp_path / 'gone'}; name where they are now" in err


def test_robustness(evaluate: Run, tiny_run: Path, tiny_photos: Path) -> None:
    code, out, _ = evaluate(tiny_run, tiny_photos, "--robustness", "--json")
    assert code == 0
    facts = json.loads(out)["robustness"]
    assert facts["harmed"]["as they are"]["top1"] == 1.0
    assert set(facts["shapes"]["16:9"]) == {"crop", "letterbox", "squash"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--coverage", "95"], "expected a share above 0 and below 1"),
        (["--coverage", "0.7", "--split", "validation"], "fitted on the validation photos"),
        (["--unknown", "nope"], "there is no folder nope"),
        (["--unknown", "EMPTY"], "empty has no photo that can be read"),
        (["--unknown", "OWN"], "also among those of the classes (blue sky/00.jpg); name a folder of photos of none"),
        (["--report", "EMPTY"], "is a folder, expected the name of a file"),
    ],
)
def test_what_cannot_be_had_is_told_before_the_photos_are_scored(
    evaluate: Run,
    run: Path,
    tiny_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    from handlens import evaluate as room

    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "OWN": str(tiny_photos)}
    monkeypatch.setattr(room, "score", lambda *_: pytest.fail("scored before it was told"))
    code, out, err = evaluate(run, *(places.get(a, a) for a in arguments), "--json")
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("missing", "more"), [("scipy", []), ("jinja2", ["--report", "r.html"])])
def test_packages_that_are_missing_are_named_first(
    evaluate: Run, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, more: list[str]
) -> None:
    from handlens import evaluate as room

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(room, "score", lambda *_: pytest.fail("scored before it was told"))
    monkeypatch.setitem(sys.modules, missing, None)
    code, out, err = evaluate(run, *more)
    assert (code, out) == (2, "") and 'pip install "handlens[evaluate]"' in err and len(err.splitlines()) == 1


def test_a_photo_of_the_unknown_that_cannot_be_read(evaluate: Run, run: Path, tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "broken.jpg").write_bytes(b"no photo")
    code, out, err = evaluate(run, "--unknown", tmp_path / "others")
    assert (code, out) == (2, "")
    assert "has no photo that can be read" in err
