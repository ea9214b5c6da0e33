"""`handlens train`: options, what it prints, Ctrl-C, and errors that are one sentence and leave nothing behind."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from handlens import checkpoint, files, photos, train
from handlens.cli import train as command
from handlens.train import Recipe, Run, job, loop, several
from handlens.train.recipe import choose

Train = Callable[..., tuple[int, str, str]]
NET = "mobilenet_v3_small"
QUICK = ["--image-px", "32", "--batch-size", "8", "--epochs", "1", "--precision", "32-true"]
SMALL = ["--net", NET, "--weights", "none", "--width", "0.35", *QUICK]


@pytest.fixture(autouse=True)
def _no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "fetch", lambda *_: None)


@pytest.fixture
def call(command: Train) -> Train:
    return functools.partial(command, "train")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command asks of `handlens.fit`, which does nothing here."""
    calls: list[dict[str, Any]] = []

    def fit(photos: str = "", *, watcher: Any, out: Any, resume: bool, device: str, devices: int, num_nodes: int,
            **given: Any) -> Run:  # fmt: skip
        calls.append({"photos": photos, "out": out, "resume": resume, "device": device, "devices": devices,
                      "num_nodes": num_nodes, "given": given})  # fmt: skip
        watcher.started(Path("run"))
        return Run(Path("run"), Recipe(), ("a", "b"), {})

    monkeypatch.setattr(train, "fit", fit)
    return calls


@pytest.mark.parametrize(("options", "begun"), [([], True), (["--repeats", "2"], True), (["--devices", "2"], False)])
def test_photos_are_looked_at_while_torch_is_imported(
    call: Train, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], begun: bool
) -> None:
    looked: list[str] = []

    def looking_ahead(folder: str) -> Any:
        looked.append(folder)
        return contextlib.nullcontext()

    monkeypatch.setattr("handlens.photos.ahead.looking_ahead", looking_ahead)
    call(tmp_path, *options)
    assert not looked  # it is imported by now
    monkeypatch.setattr(command, "sys", SimpleNamespace(modules={}))  # as in a new process
    call(tmp_path, *options)
    assert looked == [str(tmp_path)] * begun


@pytest.mark.parametrize("photos", ["nowhere", "~/nowhere", "file.txt"])
def test_photos_that_are_not_there_are_refused_before_torch_is_imported(
    call: Train, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("file.txt").write_text("no photos")
    monkeypatch.setattr(command, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr("handlens.photos.ahead.looking_ahead", lambda _: pytest.fail("torch is imported"))
    code, out, err = call(photos)
    assert (code, out, err.count("\n")) == (2, "", 1) and Path(photos).name in err
    assert not asked


def test_a_published_set_of_photos_need_not_be_there(
    call: Train, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "sys", SimpleNamespace(modules={}))
    call("flower_photos")
    assert [fit["photos"] for fit in asked] == ["flower_photos"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_photos: Path) -> Path:
    """A finished run. Not to be changed."""
    out = tmp_path_factory.mktemp("done") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDLENS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        settings = {"image_px": 32, "batch_size": 8, "epochs": 1, "precision": "32-true"}
        train.fit(tiny_photos, out=out, net=NET, width=0.35, weights="none", **settings)
    return out


def test_a_run_without_test_photos_says_so_and_names_no_report(call: Train, asked: list[dict[str, Any]]) -> None:
    code, out, _ = call("photos")
    assert (code, len(asked)) == (0, 1)
    assert out.startswith("no photo was left for the test") and "report" not in out


def test_copies_of_one_photo_a_class_are_too_few(call: Train, tiny_photos: Path, tmp_path: Path) -> None:
    for name in ("花朵", "blue sky"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            shutil.copy(tiny_photos / name / "00.jpg", tmp_path / "photos" / name / f"{number}.jpg")
    code, out, err = call(tmp_path / "photos", "--out", tmp_path / "run", *SMALL)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has three different photos, so none can be kept for validation and test; add photos" in err
    assert not (tmp_path / "run").exists()


RECIPE_OPTIONS: dict[str, Any] = {
    "--net": "mobilenet_v2",
    "--mode": "last",
    "--weights": "w.pth",
    "--width": 0.5,
    "--image-px": 96,
    "--normalisation": "min-max",
    "--epochs": 7,
    "--batch-size": 12,
    "--lr": 0.25,
    "--augment": "none",
    "--balance": "sampling",
    "--head-hidden": 40,
    "--last-blocks": 6,
    "--patience-epochs": 2,
    "--precision": "bf16-mixed",
    "--cache-mb": 77,
    "--seed": 5,
    "--continue": "runs/a",
    "--add": "more",
    "--prune": 0.25,
    "--teacher": "runs/big",
    "--unknown": "other-photos",
}


def field(option: str) -> str:
    return "continue_run" if option == "--continue" else option[2:].replace("-", "_")


def test_the_table_has_every_option_of_a_recipe() -> None:
    assert {field(option) for option in RECIPE_OPTIONS} == set(command._RECIPE_OPTIONS)
    others = {"photos", "out", "recipe", "resume", "device", "devices", "num_nodes", "json", "repeats", "folds"}
    assert set(inspect.signature(command.train).parameters) - others == set(command._RECIPE_OPTIONS)


@pytest.mark.parametrize("option", RECIPE_OPTIONS)
def test_an_option_reaches_the_recipe(option: str, call: Train, asked: list[dict[str, Any]]) -> None:
    more = ["--continue", "runs/a"] if option == "--add" else []
    code, _, err = call("photos", option, RECIPE_OPTIONS[option], *more)
    assert code == 0, err
    assert asked[0]["photos"] == "photos"
    expected = {field(option): RECIPE_OPTIONS[option]} | ({"continue_run": "runs/a"} if more else {})
    assert asked[0]["given"] == expected
    Recipe(**expected)


def test_nothing_has_to_be_chosen(call: Train, asked: list[dict[str, Any]]) -> None:
    assert call("photos")[0] == 0
    assert asked == [{"photos": "photos", "out": None, "resume": False, "device": "auto", "devices": 1,
                      "num_nodes": 1, "given": {}}]  # fmt: skip


def test_the_machine_is_chosen_beside_the_recipe(call: Train, asked: list[dict[str, Any]]) -> None:
    assert call("photos", "--out", "r", "--device", "cpu", "--devices", 3, "--num-nodes", 2)[0] == 0
    assert (asked[0]["out"], asked[0]["device"], asked[0]["devices"], asked[0]["num_nodes"]) == (Path("r"), "cpu", 3, 2)
    assert asked[0]["given"] == {}


def test_options_beside_a_recipe_win(call: Train, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "recipe 花.toml"
    recipe = Recipe(photos="my photos", lr=0.5, seed=3, epochs=5)
    recipe.write(path)
    assert call("--recipe", path, "--seed", 4)[0] == 0
    assert asked[0]["photos"] == "my photos"
    rest = {name: value for name, value in vars(recipe).items() if name != "photos"}
    assert asked[0]["given"] == rest | {"seed": 4}
    assert call("--recipe", path, "other photos")[0] == 0
    assert asked[1]["photos"] == "other photos"


def test_a_size_and_epochs_beside_a_recipe_leave_nothing_that_was_chosen_for_others(
    call: Train, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    path, crops = tmp_path / "recipe.toml", {"train_px", "first_px", "last_px"}
    recipe = choose([500] * 5, {"mode": "scratch", "weights": "none"})
    assert (recipe.train_px, recipe.last_px, recipe.warmup_epochs) == (176, 224, 5.0)
    recipe.write(path)
    assert call("--recipe", path, "--image-px", 160, "--epochs", 3)[0] == 0
    given = asked[0]["given"]
    assert not crops & given.keys() and given["warmup_epochs"] == 0.6
    again = choose([500] * 5, given)
    assert (again.train_px, again.last_px, again.epochs) == (128, 160, 3)
    assert call("--recipe", path, "--image-px", 224, "--epochs", recipe.epochs)[0] == 0
    assert asked[1]["given"] == {name: value for name, value in vars(recipe).items() if name != "photos"}
    assert call("--recipe", path, "--epochs", 500)[0] == 0
    assert asked[2]["given"]["warmup_epochs"] == 5.0
    path.write_text("train_px = 96\nwarmup_epochs = 2\n", "utf-8")  # by hand, for no size or epochs of its own
    assert call("--recipe", path, "--image-px", 160, "--epochs", 3)[0] == 0
    assert asked[3]["given"] == {"train_px": 96, "warmup_epochs": 2, "image_px": 160, "epochs": 3}


def test_a_runs_own_recipe_goes_on_from_it(call: Train, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    Recipe(photos="my photos", mode="scratch", weights="none", net="mobilenet_v2", width=0.5, image_px=96, lr=0.5,
           head_hidden=7).write(path)  # fmt: skip
    assert call("--recipe", path, "--continue", "runs/a", "--epochs", 3)[0] == 0
    assert asked[0]["photos"] == ""
    given = asked[0]["given"]
    assert (given["lr"], given["epochs"], given["continue_run"]) == (0.5, 3, "runs/a")
    assert not {"net", "weights", "width", "image_px", "head_hidden", "normalisation", "mode"} & given.keys()
    assert call("--recipe", path, "--continue", "runs/a", "--add", "more")[0] == 0
    assert asked[1]["given"]["add"] == "more"
    path.write_text('add = "others"\nphotos = "moved"\nlr = 0.5\n', "utf-8")  # by hand
    assert call("--recipe", path, "--continue", "runs/a")[0] == 0
    assert (asked[2]["photos"], asked[2]["given"]) == ("moved", {"add": "others", "lr": 0.5, "continue_run": "runs/a"})


def test_resume_is_passed_on(call: Train, asked: list[dict[str, Any]]) -> None:
    assert call("--resume", "--out", "run")[0] == 0
    assert asked[0] | {"device": "", "devices": 0, "num_nodes": 0} == {
        "photos": "", "out": Path("run"), "resume": True, "device": "", "devices": 0, "num_nodes": 0, "given": {},
    }  # fmt: skip


def test_resume_is_told_where_the_photos_are_now(call: Train, asked: list[dict[str, Any]]) -> None:
    assert call("moved", "--resume", "--out", "run")[0] == 0
    assert (asked[0]["photos"], asked[0]["out"], asked[0]["resume"]) == ("moved", Path("run"), True)


@pytest.mark.parametrize(
    "more",
    [["photos"], ["--recipe", "r.toml", "--out", "r"], [],
     *([option, value, "--out", "r"] for option, value in RECIPE_OPTIONS.items())],
    ids=str,
)  # fmt: skip
def test_resume_with_anything_else_is_refused(call: Train, asked: list[dict[str, Any]], more: list[Any]) -> None:
    code, out, err = call("--resume", *more)
    assert (code, out, asked) == (2, "", [])
    assert "handlens train --resume --out RUN" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_senseless_number_of_devices_is_refused(call: Train, asked: list[dict[str, Any]], number: str) -> None:
    code, out, err = call("photos", "--devices", number)
    assert (code, out, asked) == (2, "", [])
    assert "--devices" in err


# ---- whole runs ------------------------------------------------------------------------------------------------------
def test_json_is_one_value_on_standard_output(call: Train, tiny_photos: Path, tmp_path: Path) -> None:
    """With spaces, Chinese characters and an emoji in every path."""
    root, run = tmp_path / "my photos 花朵 🌼", tmp_path / "a run 花朵 🌼"
    shutil.copytree(tiny_photos, root)
    code, out, err = call(root, "--out", run, *SMALL, "--seed", 3, "--json")
    assert code == 0, err
    value = json.loads(out)
    assert value["run"] == str(run)
    assert value["classes"] == ["blue sky", "花朵", "🌿 leaf"]
    assert value["recipe"]["seed"] == 3
    assert value["recipe"]["mode"] == "scratch"
    assert value["recipe"]["photos"] == str(root)
    assert value["metrics"]["test"]["num_photos"] == 3
    assert value["metrics"]["epochs"] == 1
    assert f"{NET} at 32 px, mode scratch" in err
    assert "epoch   1" in err
    assert (run / "report.html").is_file()


def test_the_bar_tells_what_the_loop_knows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlens.cli.screen.SECONDS_BETWEEN_LINES", 0.0)
    row = {"epoch": 1, "train_loss": 1, "train_top1": 1, "validation_loss": 1, "validation_top1": 1, "lr": 1}
    with command.watcher() as watching:
        watching.count("downloading weights", 5, 0)
        watching.epoch([{**row, "photos_per_s": 1000.0, "seconds": 0.1}])  # of a head, whose epochs take no time
        watching.epoch([{**row, "epoch": 4, "photos_per_s": 50.0, "seconds": 9.0}])  # resumed after its last step
        watching.step(loop.Step(epoch=3, epochs=8, step=2, steps=5, loss=0.51, photos_per_s=84.6, seconds_left=125.0))
        watching.epoch([{**row, "photos_per_s": 84.6, "seconds": 0.1}])
    first, resumed, *lines, last = capsys.readouterr().err.splitlines()
    assert resumed.startswith("epoch   4")
    assert [first, *lines] == ["downloading weights: 5", "training: 12 of 40, loss 0.510, 85 photos/s, 0:02:05 left"]
    assert last.startswith("epoch   1") and last.endswith("84.6 photos/s")
    assert len(last) <= 79


def test_the_end_says_how_good_it_is_and_what_to_type_next(call: Train, tiny_photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, _ = call(tiny_photos, "--out", run, *SMALL)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("top-1 ")
    assert "on 3 test photos (95 % interval" in lines[0]
    kept = json.loads((run / "handlens.json").read_text(encoding="utf-8"))["metrics"]["kept_epoch"]
    assert lines[1] == f"kept    epoch {kept} of 1"
    html = (run / "report.html").read_text(encoding="utf-8")
    assert f'<th scope="row">kept_epoch</th><td>{kept}</td>' in html
    assert f"report  {run / 'report.html'}" in lines
    assert f"next    handlens predict {run} PHOTO" in lines


@pytest.mark.parametrize(
    ("more", "said"),
    [({}, "48 test photos ("), ({"effective_num_photos": 48.0}, "48 test photos ("),
     ({"effective_num_photos": 6.0}, "48 test photos, with copies as good as 6 different ones (")],
)  # fmt: skip
def test_the_end_says_how_few_photos_there_are_among_copies(
    more: dict[str, float], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = {"top1": 0.5, "top1_ci95": [0.2, 0.8], "num_photos": 48, **more}
    command.show(Run(folder=tmp_path, recipe=Recipe(), classes=("a", "b"), metrics={"test": test}))
    assert f"top-1 50.0% on {said}95 % interval 20.0% to 80.0%)" in capsys.readouterr().out


def test_continue_and_add(call: Train, done: Path, tiny_photos: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "more" / "a new one").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (40, 40), (20 * number, 200, 9)).save(tmp_path / "more" / "a new one" / f"{number}.png")
    shutil.copy(tiny_photos / "花朵" / "03.jpg", tmp_path / "more" / "a new one")
    quick = ["--epochs", "1", "--batch-size", "8", "--precision", "32-true", "--json"]
    code, out, err = call("--continue", done, "--add", tmp_path / "more", "--out", tmp_path / "run", *quick)
    assert code == 0, err
    value = json.loads(out)
    assert value["classes"] == ["blue sky", "花朵", "🌿 leaf", "a new one"]
    assert value["metrics"]["test"]["num_photos"] == 4
    assert "left out 1 added photo that the run has already (a new one/03.jpg ...)" in err


def test_photos_that_cannot_be_used_are_listed(call: Train, tiny_photos: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_photos, tmp_path / "photos")
    (tmp_path / "photos" / "花朵" / "00.jpg").write_bytes(b"no photo")
    huge_png(tmp_path / "photos" / "花朵" / "huge.png")
    code, out, err = call(tmp_path / "photos", "--out", tmp_path / "run", *SMALL, "--json")
    assert code == 0
    assert "left out 花朵/00.jpg" in err
    assert any("left out 花朵/huge.png" in line and "too many pixels" in line for line in err.splitlines())
    notes = json.loads(out)["metrics"]["notes"]
    assert sum("left out" in note for note in notes) == 2
    assert sum("are needed" in note for note in notes) == 2  # a validation set of three photos


def huge_png(path: Path) -> None:
    """A PNG that says it has 60,000 x 60,000 pixels, in 100 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------
def test_ctrl_c_says_how_to_go_on_and_that_works(
    call: Train, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, make, calls = tmp_path / "a run", loop.Batches.make, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return make(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Batches, "make", interrupted)
        code, out, err = call(tiny_photos, "--out", run, *SMALL)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == f"saved; go on with: handlens train --resume --out '{run}'"
    assert (run / files.STATE).is_file()
    code, out, err = call("--resume", "--out", run, "--json")
    assert code == 0, err
    assert json.loads(out)["run"] == str(run)
    code, out, err = call("--resume", "--out", run)
    assert (code, out) == (2, "")
    assert "is finished" in err


def test_ctrl_c_in_a_head_does_not_say_that_it_is_saved(
    call: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(photos: str, *, watcher: Any, **_: Any) -> None:
        watcher.started(tmp_path / "run")  # which keeps features, not the state of its quick epochs
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", interrupted)
    code, out, err = call("photos", "--mode", "head")
    assert (code, out) == (130, "")
    again = f"handlens train --resume --out {tmp_path / 'run'}"
    assert err.splitlines()[-1] == f"stopped; begin its epochs again with: {again}"


def test_to_go_on_takes_the_same_devices() -> None:
    run = Path("runs/a")
    assert command.to_resume(run).endswith("handlens train --resume --out runs/a")
    assert command.to_resume(run, "cpu", 2, 3).endswith("--out runs/a --device cpu --devices 2 --num-nodes 3")


def test_ctrl_c_before_there_is_a_run(
    call: Train, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(photos, "examine", interrupted)
    code, out, err = call(tiny_photos, "--out", tmp_path / "run", *SMALL)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "stopped"
    assert not (tmp_path / "run").exists()


def test_the_end_of_another_process_is_one_sentence_and_a_bug_stays_one(
    call: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: Any, **__: Any) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:18121.")

    def wrong(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(train, "fit", ended)
    code, out, err = call("photos", "--devices", 2)
    assert (code, out) == (2, "")
    assert "another process of this training has ended" in err
    monkeypatch.setattr(train, "fit", wrong)
    with pytest.raises(RuntimeError, match="mat1"):
        call("photos", "--devices", 2)


# ---- errors ----------------------------------------------------------------------------------------------------------
def fails(call: Train, run: Path, *arguments: object) -> str:
    """The sentence on standard error of a call that fails and leaves no run."""
    code, out, err = call(*arguments, "--out", run, "--json")
    assert (code, out) == (2, "")
    assert not run.exists()
    assert not list(run.parent.glob(".*.part"))
    lines = err.splitlines()
    assert "Traceback" not in err
    assert lines[-1].startswith("handlens: ")
    return lines[-1]


def without_class(root: Path) -> None:
    for name in ("花朵", "🌿 leaf"):
        shutil.rmtree(root / name)


def empty_class(root: Path) -> None:
    (root / "nothing here").mkdir()


def few_photos(root: Path) -> None:
    for name in ("花朵", "🌿 leaf"):
        shutil.rmtree(root / name)
        (root / name).mkdir()
    for photo in sorted((root / "blue sky").iterdir())[1:]:
        photo.unlink()


def broken_class(root: Path) -> None:
    for photo in (root / "花朵").iterdir():
        photo.write_bytes(b"no photo")


def no_class(root: Path) -> None:
    for folder in list(root.iterdir()):
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without_class, "has one class only (blue sky), expected at least two"),
        (empty_class, "has a class without photos: 'nothing here'"),
        (few_photos, "has 1 photo in 3 class folders: no photo in '花朵', '🌿 leaf'"),
        (broken_class, "all photos of '花朵' are broken (the first: 花朵/00.jpg is not a photo"),
        (no_class, "has no photos"),
        (shutil.rmtree, "there is no folder"),
    ],
)
def test_photos_that_cannot_be_trained_on(
    call: Train, tiny_photos: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    root = tmp_path / "my photos 花 🌼"
    shutil.copytree(tiny_photos, root)
    spoil(root)
    assert sentence in fails(call, tmp_path / "run", root, *SMALL)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--net", "mobilenet_v3_smal"], "mobilenet_v3_small"),
        (["--mode", "fast"], "mode is 'fast', expected full, last, head or scratch"),
        (["--epochs", "0"], "epochs is 0, expected 1 to 100000"),
        (["--batch-size", "0"], "batch_size is 0, expected 2 to 65536"),
        (["--lr", "0"], "lr is 0.0, expected above 0"),
        (["--seed", "-1"], "seed is -1, expected 0 to"),
        (["--width", "0"], "width is 0.0, expected above 0"),
        (["--image-px", "8"], "8 px is too small an input"),
        (["--balance", "yes"], "balance is 'yes', expected none, weights or sampling"),
        (["--device", "tpu"], "device is 'tpu', expected auto, cpu, cuda or mps"),
        (["--mode", "head", "--weights", "none"], "--mode head trains on top of weights, and --weights is none"),
        (["--weights", "nowhere.pth"], "the weight file nowhere.pth does not exist"),
        (["--weights", "TEXT"], "is no weight file"),
        (["--weights", "OTHER"], "does not fit"),
        (["--recipe", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["--recipe", "TEXT"], "is not TOML"),
        (["--add", "more"], "--add needs the run that it adds to; handlens train --continue RUN --add PHOTOS"),
        (["--continue", "nowhere"], "there is no run folder nowhere"),
        (["--continue", "PHOTOS"], "is no finished run"),
    ],
    ids=str,
)
def test_options_that_cannot_be(
    call: Train, tiny_photos: Path, tmp_path: Path, options: list[str], sentence: str
) -> None:
    import safetensors.torch
    import torch

    (tmp_path / "text.safetensors").write_text("this is [ no weight file")
    safetensors.torch.save_file({"first.weight": torch.zeros(3, 4)}, tmp_path / "other.safetensors")
    places = {"TEXT": tmp_path / "text.safetensors", "OTHER": tmp_path / "other.safetensors", "PHOTOS": tiny_photos}
    given = [str(places.get(option, option)) for option in options]
    usual = [] if "--continue" in options or "--recipe" in options else SMALL
    if "--weights" in options:  # they may not be given twice with another mode
        usual = ["--net", NET, *QUICK]
    assert sentence in fails(call, tmp_path / "run", tiny_photos, *usual, *given)


def test_a_checkpoint_of_another_version(call: Train, done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "newer")
    facts = json.loads((tmp_path / "newer" / "handlens.json").read_text("utf-8"))
    facts["format_version"] = checkpoint.FORMAT_VERSION + 1
    (tmp_path / "newer" / "handlens.json").write_text(json.dumps(facts), "utf-8")
    sentence = fails(call, tmp_path / "run", "--continue", tmp_path / "newer")
    assert "newer is a checkpoint of format 2, this handlens reads format 1" in sentence


def test_a_full_disk(call: Train, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    assert "the disk is full" in fails(call, tmp_path / "run", tiny_photos, *SMALL)


def test_a_run_that_exists_is_left_as_it_is(call: Train, done: Path, tiny_photos: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in done.iterdir()}
    code, out, err = call(tiny_photos, "--out", done, *SMALL)
    assert (code, out) == (2, "")
    assert f"{done} exists already; choose another --out, or remove it" in err
    assert {path.name: path.stat().st_mtime_ns for path in done.iterdir()} == before


def test_no_photos_are_named(call: Train, tmp_path: Path) -> None:
    assert "no photos were given" in fails(call, tmp_path / "run")


def test_help_has_examples_and_every_option_and_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['handlens', 'train', '--help']\nfrom handlens import cli\n"
    code += "try: cli.main()\nexcept SystemExit: pass\nprint([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "handlens train photos" in done.stdout
    for option in (*RECIPE_OPTIONS, "--resume", "--recipe", "--json", "--device", "--devices", "--num-nodes", "--out"):
        assert option in done.stdout


def test_repeats_train_seeds_and_tell_the_spread(
    call: Train, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    class Finished:
        def __init__(self, top1: float) -> None:
            self.metrics = {"test": {"top1": top1, "top1_ci95": [top1 - 0.1, 1.0], "num_photos": 4}}

    def fit(source: str, *, out: Path, **given: Any) -> Finished:
        asked.append({"photos": source, "out": out, "seed": given["seed"], "net": given["net"]})
        return Finished(0.8 + 0.05 * given["seed"])

    monkeypatch.setattr(job, "fit", fit)
    code, out, err = call(
        tiny_photos, "--net", "mobilenet_v2", "--repeats", "3", "--seed", "1", "--out", tmp_path / "r", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert [line["seed"] for line in asked] == [1, 2, 3]
    assert [line["out"].name for line in asked] == ["seed-1", "seed-2", "seed-3"]
    assert found["mean"] == pytest.approx(0.9)
    assert found["standard_deviation"] == pytest.approx(0.05)
    assert found["mean_ci95"] == pytest.approx([0.7758, 1], abs=1e-4)
    assert json.loads((tmp_path / "r" / "repeats.json").read_text("utf-8")) == found
    given = ("--net", "mobilenet_v2", "--repeats", "3", "--seed", "1")
    code, out, err = call(tiny_photos, *given, "--out", tmp_path / "told")
    assert code == 0, err
    interval = "(95 % interval 77.6% to 100.0% by Student's t, for other seeds with these photos)"
    assert f"mean 90.0% {interval}, standard deviation 5.0 points" in " ".join(out.split())


def test_folds_test_each_photo_once(
    call: Train, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(tiny_photos, tmp_path / "photos"))
    broken = next(root.rglob("*.jpg"))
    broken.write_bytes(b"")
    tested: list[str] = []

    class Finished:
        def __init__(self, right: int, num_photos: int) -> None:
            share = right / num_photos
            self.metrics = {"test": {"top1": share, "top1_ci95": [share, 1.0], "num_photos": num_photos}}

    def fit(source: str, *, watcher: Any, **given: Any) -> Finished:
        found = photos.scan(source)
        assert set(found.splits or ()) == {"train", "validation", "test"}
        own = [path for path, side in zip(found.paths, found.splits or (), strict=True) if side == "test"]
        tested.extend(own)
        watcher.note("2 groups of near-duplicates")
        return Finished(len(own) - 1, len(own))

    monkeypatch.setattr(job, "fit", fit)
    code, out, err = call(root, "--folds", "3", "--out", tmp_path / "r", "--json")
    assert code == 0, err
    assert f"left out {broken.relative_to(root).as_posix()}: " in err
    assert err.count("near-duplicates") == 1  # what is true of each fold is told once
    found = json.loads(out)
    whole = sorted(str((root / path).resolve()) for path in photos.scan(root).paths if root / path != broken)
    assert sorted(tested) == whole
    assert [Path(line["run"]).name for line in found["runs"]] == ["fold-1", "fold-2", "fold-3"]
    assert found["all_photos"]["top1"] == pytest.approx(1 - 3 / len(tested))
    assert json.loads((tmp_path / "r" / "folds.json").read_text("utf-8")) == found
    assert "own test photos" in call(tmp_path / "r" / "fold-1.csv", "--folds", "2", "--out", tmp_path / "s")[2]


def test_interrupted_folds_go_on_as_a_whole(
    call: Train, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fit = tmp_path / "my runs", job.fit

    def stopped(*arguments: Any, **given: Any) -> Any:
        if given["out"].name == "fold-2":
            raise KeyboardInterrupt
        return fit(*arguments, **given)

    monkeypatch.setattr(job, "fit", stopped)
    code, said, err = call(tiny_photos, "--folds", "2", "--out", out, *SMALL)
    assert (code, said) == (130, "")
    assert err.splitlines()[-1] == f"stopped; go on with: handlens train --resume --out '{out}'"
    assert "go on with: handlens train --resume" in call(tiny_photos, "--folds", "2", "--out", out)[2]

    monkeypatch.setattr(job, "fit", fit)
    first = (out / "fold-1" / files.WEIGHTS).read_bytes()
    code, said, err = call("--resume", "--out", out, "--json")
    assert code == 0, err
    found = json.loads(said)
    assert [Path(row["run"]).name for row in found["runs"]] == ["fold-1", "fold-2"]
    assert found["all_photos"]["num_photos"] == len(photos.scan(tiny_photos))
    assert (out / "fold-1" / files.WEIGHTS).read_bytes() == first
    again = call("--resume", "--out", out, "--json")  # all are done, and nothing is trained
    assert json.loads(again[1]) == found


def test_seeds_go_on_where_their_photos_are_now(
    call: Train, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, runs, fit = shutil.copytree(tiny_photos, tmp_path / "photos"), tmp_path / "runs", job.fit

    def stopped(*arguments: Any, **given: Any) -> Any:
        if given["out"].name == "seed-1":
            raise KeyboardInterrupt
        return fit(*arguments, **given)

    with monkeypatch.context() as patch:
        patch.setattr(job, "fit", stopped)
        assert call(root, "--repeats", "2", "--out", runs, *SMALL)[0] == 130
    Path(root).rename(tmp_path / "moved")
    code, _, err = call("--resume", "--out", runs)
    assert code == 2 and f"handlens train PHOTOS --resume --out {runs}" in err
    code, said, err = call(tmp_path / "moved", "--resume", "--out", runs, "--json")
    assert code == 0, err
    assert [Path(row["run"]).name for row in json.loads(said)["runs"]] == ["seed-0", "seed-1"]


def test_folds_do_not_go_on_elsewhere(call: Train, tiny_photos: Path, tmp_path: Path) -> None:
    several.begin(str(tiny_photos), tmp_path / "runs", {}, folds=2)
    code, out, err = call(tmp_path, "--resume", "--out", tmp_path / "runs")
    assert (code, out) == (2, "") and "name each photo by its place" in err and len(err.splitlines()) == 1


def test_photos_of_other_things_are_looked_at_before_folds_are_cut(
    call: Train, tiny_photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    assert "no photo that can be read" in fails(call, tmp_path / "r", tiny_photos, "--folds", "2", "--unknown",
                                                tmp_path / "none")  # fmt: skip
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["photos", "--repeats", "2"], "--repeats needs a folder for its runs"),
        (["--resume", "--out", "runs/a", "--repeats", "2"], "--resume goes on with seeds or folds as they were begun"),
        (["--continue", "runs/a", "--repeats", "2", "--out", "b"], "--continue keeps one"),
        (["photos", "--folds", "2"], "--folds needs a folder for its runs"),
        (["photos", "--folds", "1", "--out", "b"], "leaves nothing to train on"),
        (["photos", "--folds", "3", "--repeats", "2", "--out", "b"], "drop one of the two"),
        (["--resume", "--out", "runs/a", "--folds", "2"], "--resume goes on with seeds or folds as they were begun"),
        (["photos", "--folds", "2", "--devices", "2", "--out", "b"], "each on one device; leave out --devices"),
    ],
)
def test_repeats_that_cannot_be(call: Train, arguments: list[str], sentence: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert sentence in err
