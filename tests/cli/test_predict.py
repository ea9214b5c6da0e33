"""`handlens predict`: photos in, guesses out, files sorted."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from handlens import bundle, checkpoint
from handlens.cli.predict import _told_apart, gather
from handlens.errors import HandlensError
from handlens.run import UNCALIBRATED

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def predict(command: Run) -> Run:
    return functools.partial(command, "predict")


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_json_is_what_scripts_rely_on(predict: Run, tiny_run: Path, tiny_photos: Path) -> None:
    photos = [tiny_photos / "花朵" / "03.jpg", tiny_photos / "blue sky" / "00.jpg"]
    code, out, err = predict(tiny_run, *photos, "--top", 2, "--json")
    assert (code, err) == (0, f"{UNCALIBRATED}\n")
    answers = json.loads(out)
    assert [answer["photo"] for answer in answers] == [str(photo) for photo in photos]
    assert [answer["guesses"][0]["name"] for answer in answers] == ["花朵", "blue sky"]
    for answer in answers:
        assert set(answer) == {"photo", "guesses", "unknown", "score"}
        assert (answer["unknown"], answer["score"]) == (False, None)  # nothing says from which score on
        assert len(answer["guesses"]) == 2
        assert all(
            set(guess) == {"name", "probability"} and 0 <= guess["probability"] <= 1 for guess in answer["guesses"]
        )


def test_only_uncalibrated_probabilities_are_said_to_be(
    predict: Run, tiny_run: Path, tiny_photos: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    fitted = {"temperature": 0.9}
    checkpoint.save(tmp_path / "run", dataclasses.replace(checkpoint.load(tiny_run), calibration=fitted))
    bundle.write(tmp_path / "plain.zip", tiny.bundle())
    bundle.write(tmp_path / "fitted.zip", tiny.bundle(calibration=fitted))
    for run, said in (
        (tiny_run, f"{UNCALIBRATED}\n"), (tmp_path / "plain.zip", f"{UNCALIBRATED}\n"),
        (tmp_path / "run", ""), (tmp_path / "fitted.zip", ""),
    ):  # fmt: skip
        code, _, err = predict(run, tiny_photos / "花朵" / "00.jpg")
        assert (code, err) == (0, said)


def test_table(predict: Run, tiny_run: Path, tiny_photos: Path) -> None:
    code, out, _ = predict(tiny_run, tiny_photos / "花朵")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["photo", "answer", "probability", "or"]
    assert len(lines) == 13
    assert all("花朵" in line and "%, " in line for line in lines[1:])


def test_unreadable_photos_are_listed_and_the_rest_goes_on(
    predict: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    missing = tmp_path / "missing.jpg"
    code, out, err = predict(tiny_run, tmp_path / "broken.jpg", tiny_photos / "花朵" / "00.jpg", missing, "--json")
    assert code == 0
    broken, good, absent = json.loads(out)
    assert set(broken) == set(absent) == {"photo", "error"}
    assert good["guesses"][0]["name"] == "花朵"
    assert "does not exist" in absent["error"]
    assert len(err.splitlines()) == 3
    assert err.count("left out: ") == 2


def test_nothing_readable_is_exit_code_2(predict: Run, tiny_run: Path, tmp_path: Path) -> None:
    code, out, err = predict(tiny_run, tmp_path / "missing.jpg", "--json")
    assert code == 2
    assert "error" in json.loads(out)[0]
    assert "missing.jpg does not exist" in err


def test_answers_that_are_no_numbers_are_an_error(
    predict: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    import torch

    diverged = checkpoint.load(tiny_run)
    with torch.no_grad():
        diverged.net.classifier[-1].bias[0] = float("nan")
    checkpoint.save(tmp_path / "run", diverged)
    for photos in ([tiny_photos / "花朵" / "00.jpg"], [tiny_photos] * 2):
        code, out, err = predict(tmp_path / "run", *photos, "--sort-into", tmp_path / "sorted")
        assert (code, out) == (2, "")
        assert err.splitlines()[1:] == [
            "handlens: the network gave probabilities that are not finite; its training diverged; train again"
        ]
    assert not (tmp_path / "sorted").exists()


def test_folders_and_globs(tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_photos, tmp_path / "all")
    (tmp_path / "all" / "notes.txt").write_text("no photo")
    (tmp_path / "all" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "all" / "SHOUTED.JPG").write_bytes(b"")
    (tmp_path / "odd[1].jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert len(gather(["all"])) == 37
    assert gather(["all/花朵/0[0-2].jpg"]) == [Path(f"all/花朵/0{index}.jpg") for index in range(3)]
    assert len(gather(["all/**/*.jpg"])) == 36
    assert len(gather(["al*"])) == 37  # a glob that matches a folder
    assert gather(["odd[1].jpg"]) == [Path("odd[1].jpg")]  # a file of that very name is no glob
    assert len(gather(["all", "all/花朵/00.jpg"])) == 37  # each once
    assert gather(["nope.jpg"]) == [Path("nope.jpg")]
    for folder in (".thumbnails", "@eaDir/00.jpg"):
        (tmp_path / "all" / folder).mkdir(parents=True)
        (tmp_path / "all" / folder / "small.jpg").write_bytes(b"")
    assert len(gather(["all"])) == 37


@pytest.mark.parametrize("argument", ["empty", "*.nope"])
def test_no_photo_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HandlensError, match="there is no photo in"):
        gather([argument])


def test_csv(predict: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    odd = tmp_path / 'a, "b" 🌼.jpg'
    shutil.copy(tiny_photos / "花朵" / "00.jpg", odd)
    table = tmp_path / "new" / "answers.csv"
    code, _, _ = predict(tiny_run, odd, tmp_path / "missing.jpg", "--csv", table, "--top", 2)
    assert code == 0
    with table.open(encoding="utf-8", newline="") as file:
        header, good, absent = csv.reader(file)
    assert header == [
        "photo", "guess_1", "probability_1", "guess_2", "probability_2", "unknown", "score", "error",
    ]  # fmt: skip
    assert good[5:7] == ["false", ""]
    assert good[:2] == [str(odd), "花朵"]
    assert 0.5 < float(good[2]) <= 1
    assert good[-1] == ""
    assert absent[1:7] == [""] * 6
    assert "does not exist" in absent[7]
    assert len(absent) == 8


def test_of_many_in_a_csv_the_first_are_shown(
    predict: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlens.cli.predict.SHOWN", 2)
    photos = tiny_photos / "blue sky"
    code, out, err = predict(tiny_run, photos, "--csv", tmp_path / "answers.csv")
    assert code == 0
    assert out.count(".jpg") == 2
    assert f"and 10 more in {tmp_path / 'answers.csv'}" in err.replace("\n", "")
    assert len((tmp_path / "answers.csv").read_text("utf-8").splitlines()) == 13
    code, out, err = predict(tiny_run, photos)
    assert (code, out.count(".jpg"), "more in" in err) == (0, 12, False)


def test_sort_into(predict: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for folder in ("one", "two"):
        (source / folder).mkdir(parents=True)
        shutil.copy2(tiny_photos / "花朵" / "00.jpg", source / folder / "same.jpg")
    shutil.copy(tiny_photos / "blue sky" / "00.jpg", source / "sky.jpg")
    (source / "broken.jpg").write_bytes(b"no photo")
    code, text, err = predict(tiny_run, source, "--sort-into", out, "--json")
    assert code == 0
    assert f"3 photos are in {out}: blue sky 1, 花朵 2" in err
    assert tree(out) == ["blue sky/sky.jpg", "花朵/same-2.jpg", "花朵/same.jpg"]
    assert sorted(line["copied_to"] for line in json.loads(text) if "guesses" in line) == sorted(
        str(out / path) for path in tree(out)
    )
    for name in ("same.jpg", "same-2.jpg"):
        assert (out / "花朵" / name).read_bytes() == (source / "one" / "same.jpg").read_bytes()
    assert (out / "花朵" / "same.jpg").stat().st_mtime == (source / "one" / "same.jpg").stat().st_mtime
    assert len(tree(source)) == 4  # copied, not moved
    predict(tiny_run, source, "--sort-into", out)
    assert len(tree(out)) == 3  # the same photos are there already
    shutil.copy(tiny_photos / "blue sky" / "01.jpg", source / "sky.jpg")
    predict(tiny_run, source / "sky.jpg", "--sort-into", out)
    assert tree(out / "blue sky") == ["sky-2.jpg", "sky.jpg"]  # another of the same name overwrites nothing


def test_what_is_sorted_lies_apart(
    predict: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from handlens import checkpoint

    trained, holiday = tmp_path / "trained", tmp_path / "holiday"
    shutil.copytree(tiny_photos, trained)
    shutil.copytree(tiny_photos / "花朵", holiday / "may")
    saved = checkpoint.load(tiny_run)
    recipe = {**saved.recipe, "photos": str(trained)}
    checkpoint.save(tmp_path / "run", dataclasses.replace(saved, recipe=recipe))
    (tmp_path / "file").write_bytes(b"")
    photo, run = holiday / "may" / "00.jpg", tmp_path / "run"
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("handlens.run.load", lambda *_: pytest.fail("loaded before it was told"))
        for photos, target, sentence in (
            (photo, "file", "file is a file, expected a folder to sort photos into"),
            (photo, "file/new", "file is no folder"),
            (holiday, "holiday", f"lies within {holiday}, whose photos are to be sorted"),
            (holiday, "holiday/new/sorted", f"lies within {holiday}, whose photos are to be sorted"),
            (holiday / "may", "holiday", f"holds {photo}, which is to be sorted"),
            (photo, "holiday/may", f"holds {photo}, which is to be sorted"),
            (photo, "trained", f"lies within {trained}, which {run} was trained on"),
            (photo, "trained/花朵", f"lies within {trained}, which {run} was trained on"),
        ):
            code, out, err = predict(run, photos, "--sort-into", tmp_path / target)
            assert (code, out, len(err.splitlines())) == (2, "", 1)
            assert sentence in err
            assert str(tmp_path / target) in err
        assert tree(tmp_path) == before
    rows = "".join(f"{path},a\n" for path in sorted(trained.rglob("*.jpg")))
    (tmp_path / "fold-1.csv").write_text("path,label\n" + rows, "utf-8")
    recipe["photos"] = str(tmp_path / "fold-1.csv")
    checkpoint.save(run, dataclasses.replace(saved, recipe=recipe))
    code, _, err = predict(run, photo, "--sort-into", trained / "花朵" / "new")
    assert code == 2 and "was trained on" in err
    (tmp_path / "plan.json").write_text(json.dumps({"photos": str(trained)}), "utf-8")  # the run is one of its folds
    code, _, err = predict(run, photo, "--sort-into", trained / "new")
    assert code == 2 and f"lies within {trained}" in err
    assert not (trained / "new").exists()
    monkeypatch.chdir(tmp_path)
    for photos in (photo, "holiday/may/0*.jpg", "holiday", trained):  # beside them, also once more
        code, _, err = predict(run, photos, "--sort-into", "sorted")
        assert code == 0, err
    assert "1 photo is in" in predict(run, photo, "--sort-into", holiday / "may sorted")[2]


def test_a_csv_of_something_else_is_not_overwritten(
    predict: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    """Labels that were typed by hand, say."""
    photo = next((tiny_photos / "blue sky").iterdir())
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n", "utf-8")
    code, out, err = predict(tiny_run, photo, "--csv", table)
    assert (code, out) == (2, "") and "exists already and holds no answers" in err.replace("\n", " ")
    assert table.read_text("utf-8") == "path,label\n"
    for text in ("", None):  # empty, and with the answers of the time before
        if text is not None:
            table.write_text(text)
        assert predict(tiny_run, photo, "--csv", table)[0] == 0


def test_a_csv_that_cannot_be_written_is_told_first(
    predict: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlens.run.load", lambda *_: pytest.fail("loaded before it was told"))
    code, out, err = predict(tiny_run, tiny_photos, "--csv", tmp_path)
    assert (code, out) == (2, "")
    assert "is a folder, expected the name of a file" in err
    photo = tmp_path / "first.jpg"
    shutil.copy(tiny_photos / "花朵" / "00.jpg", photo)
    before = photo.read_bytes()
    code, out, err = predict(tiny_run, "--csv", photo, tiny_photos)  # --csv *.jpg, as the shell expands it
    assert (code, out, photo.read_bytes()) == (2, "", before)
    assert "first.jpg would be written, expected a name that ends in .csv; name it first.csv, say" in err


def test_those_under_min_probability_are_apart(predict: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    one, other = (Image.open(tiny_photos / name / "00.jpg") for name in ("花朵", "blue sky"))
    for share in range(11):
        Image.blend(one, other, share / 10).save(tmp_path / "in" / f"{share:02}.png")
    answers = json.loads(predict(tiny_run, tmp_path / "in", "--json")[1])
    probabilities = sorted(answer["guesses"][0]["probability"] for answer in answers)
    assert probabilities[3] < probabilities[4]
    least = (probabilities[3] + probabilities[4]) / 2
    predict(tiny_run, tmp_path / "in", "--sort-into", tmp_path / "out", "--min-probability", least)
    assert len(tree(tmp_path / "out" / "unsure")) == 4
    assert len(tree(tmp_path / "out")) == 11


def test_a_bar_for_many_goes_to_standard_error(
    predict: Run, tiny_run: Path, tiny_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlens.cli.screen.SECONDS_BETWEEN_LINES", 0)
    code, out, err = predict(tiny_run, tiny_photos, "--json")
    assert code == 0
    assert len(json.loads(out)) == 36
    assert "predicting: 36 of 36" in err


def test_a_nets_name_and_a_weight_file(predict: Run, tmp_path: Path, tiny_photos: Path) -> None:
    import safetensors.torch

    from handlens import nets

    net = nets.create("mobilenet_v2", 12, width=0.35)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "weights.safetensors")
    code, out, err = predict(
        "mobilenet_v2", "--weights", tmp_path / "weights.safetensors", tiny_photos / "花朵" / "00.jpg", "--json"
    )
    assert code == 0
    assert all(guess["name"] in [f"{index:02}" for index in range(12)] for guess in json.loads(out)[0]["guesses"])
    assert "names no classes" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nope", "photo.jpg"], "there is no run"),
        (["mobilenet_v9", "--weights", "w.pth", "photo.jpg"], "there is no net named 'mobilenet_v9'; did you mean"),
        (["mobilenet_v2", "--weights", "w.pth", "photo.jpg"], "w.pth does not exist"),
    ],
)
def test_bad_input_is_one_sentence(
    predict: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = predict(*arguments, "--json")
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert err.startswith("handlens: ")


@pytest.mark.parametrize("named", ["fold-1", "fold-10", ""])
def test_a_folder_of_several_runs_names_one(predict: Run, tiny_run: Path, tmp_path: Path, named: str) -> None:
    several = tmp_path / "folds"
    several.mkdir()
    if named:
        shutil.copytree(tiny_run, several / named)
        shutil.copytree(tiny_run, several / "fold-2")
    code, _, err = predict(several, "photo.jpg")
    advice = f"name one of the runs in it, such as {several / named}" if named else "`handlens train PHOTOS` makes one"
    assert code == 2 and err.endswith(f"folds is no finished run: it has no handlens.json; {advice}\n")


@pytest.fixture
def wary_run(tiny_run: Path, tmp_path: Path) -> Path:
    """The tiny run with a threshold that grey photos do not reach."""
    import dataclasses

    from handlens import checkpoint

    saved = checkpoint.load(tiny_run)
    rejection = {"kind": "energy", "threshold": 6.0}
    checkpoint.save(tmp_path / "wary", dataclasses.replace(saved, rejection=rejection))
    return tmp_path / "wary"


def test_unknown_photos_are_called_so(predict: Run, wary_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    from PIL import Image

    known, grey = tiny_photos / "花朵" / "00.jpg", tmp_path / "grey.png"
    Image.new("RGB", (40, 48), (128, 128, 128)).save(grey)
    code, out, _ = predict(wary_run, known, grey, "--json", "--csv", tmp_path / "a.csv", "--sort-into", tmp_path / "s")
    assert code == 0
    first, second = json.loads(out)
    assert (first["unknown"], second["unknown"]) == (False, True)
    assert first["score"] > 6 > second["score"]
    assert second["guesses"]
    assert tree(tmp_path / "s") == ["unknown/grey.png", "花朵/00.jpg"]
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert [row[header.index("unknown")] for row in rows] == ["false", "true"]
    assert float(rows[1][header.index("score")]) == pytest.approx(second["score"], abs=1e-5)
    code, out, _ = predict(wary_run, known, grey)
    line = next(line for line in out.splitlines() if "grey.png" in line)
    assert line.split()[1] == "unknown"
    assert f"score {second['score']:.3g}" in line
    assert _told_apart(1.0172, 1.0208) == ("1.017", "1.021")
    assert _told_apart(-0.5, 6.0) == ("-0.5", "6")
