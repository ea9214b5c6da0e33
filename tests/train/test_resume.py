"""A run that was interrupted or killed and goes on gives what an uninterrupted one gives, to the bit."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

import handlens
from handlens import checkpoint, files, nets, photos
from handlens.errors import HandlensError
from handlens.preprocess import Preprocess
from handlens.train import Recipe, Run, Watcher, job, loop, state
from handlens.train.pixels import Fixed, Pixels

PREPROCESS = Preprocess(image_px=32, resize_px=36)
RECIPE = Recipe(  # everything that draws random numbers or keeps a state
    net="mobilenet_v3_small", mode="scratch", image_px=32, first_px=24, batch_size=8, epochs=3, seed=5,
    augment="trivial", mixup_alpha=0.2, cutmix_alpha=0.2, dropout=0.3, ema_decay=0.9, balance="sampling",
    warmup_epochs=1.0,
)  # fmt: skip
STEPS = 4  # an epoch of 30 photos
Log = list[dict[str, float]]
State = dict[str, torch.Tensor]


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written after it."""


@pytest.fixture(scope="module")
def splits(tiny_photos: Path) -> dict[str, photos.Photos]:
    found = photos.scan(tiny_photos)
    return photos.split(found, {path: path for path in found.paths})


Fit = Callable[..., tuple[State, Log]]


@pytest.fixture(scope="module")
def fit(splits: dict[str, photos.Photos]) -> Fit:
    def call(folder: Path, recipe: Recipe = RECIPE, **watching: Any) -> tuple[State, Log]:
        torch.manual_seed(recipe.seed)
        net = loop.prepare(nets.create(recipe.net, 3, width=0.35), recipe)
        torch.rand(len(os.listdir(folder)) + 7)  # what else draws numbers before the loop must not matter
        pixels, fixed = Pixels(splits["train"], PREPROCESS, 64), Fixed(splits["validation"], PREPROCESS, 64)
        fabric = Fabric(accelerator="cpu", devices=1)
        net, log = loop.fit(net, pixels, fixed, recipe, PREPROCESS, folder, fabric, **watching)
        return {key: value.clone() for key, value in net.state_dict().items()}, log

    return call


@pytest.fixture(scope="module")
def uninterrupted(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Log]:
    return fit(tmp_path_factory.mktemp("uninterrupted"))


def untimed(log: Log) -> Log:
    return [{key: value for key, value in row.items() if key not in ("seconds", "photos_per_s")} for row in log]


def assert_same(one: tuple[State, Log], other: tuple[State, Log]) -> None:
    assert untimed(one[1]) == untimed(other[1])
    assert one[0].keys() == other[0].keys()
    assert [key for key, value in one[0].items() if not torch.equal(value, other[0][key])] == []


def stop_at(epoch: int, step: int, error: type[BaseException]) -> Callable[[loop.Step], None]:
    def on_step(at: loop.Step) -> None:
        if (at.epoch, at.step) == (epoch, step):
            raise error

    return on_step


def test_the_same_seed_gives_the_same_result(
    fit: Fit, uninterrupted: tuple[State, Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[loop.Step] = []
    assert_same(fit(tmp_path, on_step=steps.append), uninterrupted)
    assert [(step.epoch, step.step) for step in steps] == [(e, s) for e in (1, 2, 3) for s in range(1, STEPS + 1)]
    assert {(step.epochs, step.steps) for step in steps} == {(3, STEPS)}
    assert steps[-1].seconds_left == 0 < steps[0].seconds_left


def test_another_seed_gives_another_result(fit: Fit, uninterrupted: tuple[State, Log], tmp_path: Path) -> None:
    weights, log = fit(tmp_path, Recipe(**{**vars(RECIPE), "seed": 6}))
    assert [row["train_loss"] for row in log] != [row["train_loss"] for row in uninterrupted[1]]
    assert not torch.equal(weights["classifier.0.weight"], uninterrupted[0]["classifier.0.weight"])


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, STEPS), (2, 2), (3, STEPS)])
def test_interrupted_between_two_steps(
    fit: Fit, uninterrupted: tuple[State, Log], tmp_path: Path, epoch: int, step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, on_step=stop_at(epoch, step, KeyboardInterrupt))
    steps: list[loop.Step] = []
    assert_same(fit(tmp_path, on_step=steps.append), uninterrupted)
    assert len(steps) == 3 * STEPS - (epoch - 1) * STEPS - step  # nothing was done again


def test_interrupted_again_and_again(fit: Fit, uninterrupted: tuple[State, Log], tmp_path: Path) -> None:
    for epoch, step in ((1, 3), (2, 1), (2, 3)):
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, on_step=stop_at(epoch, step, KeyboardInterrupt))
    assert_same(fit(tmp_path), uninterrupted)


@pytest.mark.parametrize("epochs", [1, 3])
def test_interrupted_after_an_epoch(fit: Fit, uninterrupted: tuple[State, Log], tmp_path: Path, epochs: int) -> None:
    def on_epoch(log: Log) -> None:
        if len(log) == epochs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, on_epoch=on_epoch)
    assert_same(fit(tmp_path), uninterrupted)


@pytest.mark.parametrize("where", ["make", "update", "judge"])
def test_ctrl_c_in_the_middle_of_a_step(
    fit: Fit, uninterrupted: tuple[State, Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The signal comes where the weights have moved and the step is not counted: it waits for the step's end."""
    place = {"make": loop.Batches, "update": loop.Average, "judge": loop}[where]
    original, calls = getattr(place, where), 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(place, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert (tmp_path / files.STATE).is_file()
    steps: list[loop.Step] = []
    assert_same(fit(tmp_path, on_step=steps.append), uninterrupted)
    done = {"make": 1, "update": 2, "judge": 2 * STEPS}[where]  # the second batch is made in the first step
    assert len(steps) == 3 * STEPS - done


@pytest.mark.parametrize(
    ("epoch", "step", "saving"),
    [
        (1, 2, "after each epoch"),
        (2, 1, "after each epoch"),
        (1, 2, "after each step"),
        (2, STEPS, "after each step"),
        (3, 3, "after each step"),
    ],
)
def test_killed_in_the_middle_of_an_epoch(
    fit: Fit,
    uninterrupted: tuple[State, Log],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
    step: int,
    saving: str,
) -> None:
    if saving == "after each step":
        monkeypatch.setattr(loop, "_SAVE_EVERY_S", -1.0)
    with pytest.raises(Killed):
        fit(tmp_path, on_step=stop_at(epoch, step, Killed))
    steps: list[loop.Step] = []
    assert_same(fit(tmp_path, on_step=steps.append), uninterrupted)
    done = (epoch - 1) * STEPS + (step - 1 if saving == "after each step" else 0)  # the last step was not saved
    assert len(steps) == 3 * STEPS - done


def test_killed_while_the_state_is_written(
    fit: Fit, uninterrupted: tuple[State, Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, 0

    def killed(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            fit(tmp_path)
    assert_same(fit(tmp_path), uninterrupted)


# ---- whole runs ------------------------------------------------------------------------------------------------------
def rows(run: Path) -> Log:
    with (run / "log.csv").open(newline="") as file:
        return untimed([{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)])


def assert_same_run(one: Run, other: Run) -> None:
    assert rows(one.folder) == rows(other.folder)
    weights = "model.safetensors"
    assert (one.folder / weights).read_bytes() == (other.folder / weights).read_bytes()
    assert one.metrics["test"] == other.metrics["test"]
    assert one.metrics["validation"] == other.metrics["validation"]
    assert one.recipe == other.recipe
    assert not (one.folder / files.STATE).exists()


KILLED = """
import json, os, signal, sys
import torch
import handlens
from handlens.train import Watcher

class Kills(Watcher):
    def step(self, step):
        if (step.epoch, step.step) == (2, 2):
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(int(sys.argv[2]))
handlens.fit(watcher=Kills(), **json.loads(sys.argv[1]))
"""


def test_a_process_killed_in_the_middle_of_an_epoch(
    full_run: Run, tiny_photos: Path, weight_file: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    import json

    out = tmp_path / "killed 🌼"
    given = {"photos": str(tiny_photos), "out": str(out), "weights": str(weight_file), "net": full_run.recipe.net}
    command = [
        sys.executable,
        "-c",
        KILLED,
        json.dumps({**given, "mode": "full", **quick}),
        str(torch.get_num_threads()),
    ]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert {path.name for path in out.iterdir()} >= {"recipe.toml", "split.json", "log.csv", files.STATE}
    assert not (out / "handlens.json").exists()
    assert_same_run(handlens.fit(out=out, resume=True), full_run)


@pytest.mark.parametrize("mode", ["full", "head"])
def test_killed_while_the_finished_network_is_judged(
    full_run: Run,
    tiny_photos: Path,
    weight_file: Path,
    quick: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    given = {"weights": str(weight_file), "net": full_run.recipe.net, "mode": mode, **quick}
    expected = full_run if mode == "full" else handlens.fit(tiny_photos, out=tmp_path / "expected", **given)
    with monkeypatch.context() as patch:
        patch.setattr("handlens.train.judge._score", killed)
        with pytest.raises(Killed):
            handlens.fit(tiny_photos, out=tmp_path / "run", **given)
    (tmp_path / "run" / "log.csv").unlink()  # as if killed before it was written
    run = handlens.fit(out=tmp_path / "run", resume=True)
    assert_same_run(run, expected)
    assert (run.folder / "report.html").is_file()
    with pytest.raises(HandlensError, match="is finished"):
        handlens.fit(out=tmp_path / "run", resume=True)


def test_a_head_interrupted_with_the_precision_still_open(
    tiny_photos: Path, weight_file: Path, quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trying precisions draws random numbers, as many as there are precisions: none may reach the new layers."""
    monkeypatch.setattr(job.trial, "step_s", lambda *_: float(torch.rand(1)) + 1)
    given = {"weights": str(weight_file), "net": "mobilenet_v3_small", "mode": "head", **quick, "precision": "auto"}
    expected = handlens.fit(tiny_photos, out=tmp_path / "expected", **given)

    class Stops(Watcher):
        def epoch(self, log: Log) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        handlens.fit(tiny_photos, out=tmp_path / "run", watcher=Stops(), **given)
    assert Recipe.read(tmp_path / "run" / "recipe.toml") == expected.recipe
    assert_same_run(handlens.fit(out=tmp_path / "run", resume=True), expected)


def test_what_cannot_be_resumed(full_run: Run, tmp_path: Path) -> None:
    for out, sentence in (
        (tmp_path / "none", "none is no interrupted run"),
        (tmp_path, "is no interrupted run"),
        (full_run.folder, "is finished"),
        (None, "no folder is no interrupted run"),
    ):
        with pytest.raises(HandlensError, match=sentence):
            handlens.fit(out=out, resume=True)


@pytest.mark.parametrize("mode", ["full", "head"])
def test_a_run_that_was_ended_meanwhile_is_left_as_it_is(
    tiny_photos: Path, weight_file: Path, quick: dict[str, Any], tmp_path: Path, mode: str
) -> None:
    """By another process, while this one looked at the photos, which lie elsewhere now."""

    class Stops(Watcher):
        def epoch(self, log: Log) -> None:
            raise KeyboardInterrupt

    class EndsItMeanwhile(Watcher):
        def __init__(self) -> None:
            self.left: dict[Path, bytes] = {}

        def count(self, what: str, done: int, total: int) -> None:
            if what == "looking at photos" and not self.left:
                handlens.fit(out=tmp_path / "run", resume=True)
                self.left = whole(tmp_path / "run")

        def started(self, folder: Path) -> None:
            pytest.fail("it was trained again")

    def whole(folder: Path) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    given = {"weights": str(weight_file), "net": "mobilenet_v3_small", "mode": mode, **quick}
    with pytest.raises(KeyboardInterrupt):
        handlens.fit(tiny_photos, out=tmp_path / "run", watcher=Stops(), **given)
    moved, second = shutil.copytree(tiny_photos, tmp_path / "moved"), EndsItMeanwhile()
    with pytest.raises(HandlensError, match=rf"{tmp_path / 'run'} is finished; .* shows its figures"):
        handlens.fit(moved, out=tmp_path / "run", resume=True, watcher=second)
    assert second.left and whole(tmp_path / "run") == second.left


def test_a_run_that_went_on_meanwhile_goes_on_from_there(
    tiny_photos: Path, weight_file: Path, quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job.trial, "faster_precision", lambda *_: ("32-true", 110.0))  # seconds a step, three an epoch

    class StopsIn(Watcher):
        def __init__(self, last: int) -> None:
            self.last, self.notes = last, list[str]()

        def note(self, text: str) -> None:
            self.notes.append(text)

        def step(self, step: loop.Step) -> None:
            if step.epoch == self.last:
                raise KeyboardInterrupt

    def late(folder: Path) -> Any:
        monkeypatch.setattr(job, "alone", alone)
        with pytest.raises(KeyboardInterrupt):
            handlens.fit(out=tmp_path / "run", resume=True, watcher=StopsIn(3))
        return alone(folder)

    given = {"weights": str(weight_file), "net": "mobilenet_v3_small", "mode": "full", **quick, "epochs": 3}
    expected = handlens.fit(tiny_photos, out=tmp_path / "expected", **given)
    with pytest.raises(KeyboardInterrupt):
        handlens.fit(tiny_photos, out=tmp_path / "run", watcher=StopsIn(2), **given)
    alone, last = job.alone, StopsIn(0)
    monkeypatch.setattr(job, "alone", late)
    assert_same_run(handlens.fit(out=tmp_path / "run", resume=True, watcher=last), expected)
    (told,) = [note for note in last.notes if "for what is left" in note]
    assert told.endswith(": about 6 min for what is left")


@pytest.mark.parametrize("devices", [1, 2])
def test_what_is_given_beside_a_run_that_goes_on_is_refused(stopped: Path, devices: int) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(HandlensError, match="as it was begun, and not with another 'epochs', 'nonsense'; give `out`"):
        handlens.fit(out=stopped, resume=True, device="cpu", devices=devices, epochs=99, nonsense=3)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("mode", ["full", "head"])
def test_a_run_that_is_being_trained_is_left_alone(
    tiny_photos: Path, weight_file: Path, quick: dict[str, Any], tmp_path: Path, mode: str
) -> None:
    given = {"weights": str(weight_file), "net": "mobilenet_v3_small", "mode": mode, **quick}
    told: list[str] = []

    class Meanwhile(Watcher):
        def epoch(self, log: Log) -> None:
            for more in ({"resume": True}, {"photos": tiny_photos, **given}):
                with pytest.raises(HandlensError) as caught:
                    handlens.fit(out=tmp_path / "run", **more)
                told.append(str(caught.value))

    handlens.fit(tiny_photos, out=tmp_path / "run", watcher=Meanwhile(), **given)
    sentence = f"{tmp_path / 'run'} is being trained by another process; wait for it, or end that process"
    assert set(told) == {sentence}
    assert job.is_finished(tmp_path / "run")
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_photos_that_changed_meanwhile_are_refused(
    tiny_photos: Path, weight_file: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    class Stops(Watcher):
        def step(self, step: loop.Step) -> None:
            raise KeyboardInterrupt

    shutil.copytree(tiny_photos, tmp_path / "photos")
    given = {"weights": str(weight_file), "net": "mobilenet_v3_small", "mode": "full", **quick}
    with pytest.raises(KeyboardInterrupt):
        handlens.fit(tmp_path / "photos", out=tmp_path / "run", watcher=Stops(), **given)
    (tmp_path / "photos" / "花朵" / "00.jpg").unlink()
    with pytest.raises(HandlensError, match=r"花朵/00.jpg \(missing\)"):
        handlens.fit(out=tmp_path / "run", resume=True)


def test_another_number_of_processes_is_refused(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, on_step=stop_at(1, 2, KeyboardInterrupt))
    saved = torch.load(tmp_path / files.STATE, weights_only=True)
    assert saved["processes"] == 1
    torch.save({**saved, "processes": 2}, tmp_path / files.STATE)
    with pytest.raises(HandlensError, match=r"was begun with 2 processes, and goes on with 1.*--devices 2"):
        fit(tmp_path)


def test_seconds_and_notes_are_of_the_whole_run(
    tiny_photos: Path, weight_file: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    import time

    class Stops(Watcher):
        def step(self, step: loop.Step) -> None:
            if step.epoch == 2:
                time.sleep(1.5)
                raise KeyboardInterrupt

    shutil.copytree(tiny_photos, tmp_path / "photos")
    shutil.copy(tmp_path / "photos" / "花朵" / "00.jpg", tmp_path / "photos" / "花朵" / "again.jpg")
    given = {"weights": str(weight_file), "net": "mobilenet_v3_small", "mode": "full", **quick, "epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        handlens.fit(tmp_path / "photos", out=tmp_path / "run", watcher=Stops(), **given)
    spent_s = state.spent_s(tmp_path / "run")
    assert spent_s > 1.5
    metrics = handlens.fit(out=tmp_path / "run", resume=True).metrics
    assert metrics["seconds"] > spent_s
    assert any("1 group of identical photos" in note for note in metrics["notes"])


def test_photos_that_were_moved_are_named_anew(
    tiny_photos: Path, weight_file: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    given = {"weights": str(weight_file), "net": "mobilenet_v3_small", "mode": "full", **quick}
    out, places = tmp_path / "run", (tmp_path / "before", tmp_path / "after")
    shutil.copytree(tiny_photos, places[0])

    class Stops(Watcher):
        def step(self, step: loop.Step) -> None:
            if step.epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        handlens.fit(places[0], out=out, watcher=Stops(), **given)
    places[0].rename(places[1])
    with pytest.raises(HandlensError, match=r"are no longer in .*train PHOTOS --resume --out RUN"):
        handlens.fit(out=out, resume=True)
    run = handlens.fit(places[1], out=out, resume=True)
    assert run.recipe.photos == str(places[1])
    assert job.is_finished(out)


def test_a_run_that_was_judged_on_nothing_is_finished(tmp_path: Path) -> None:
    net = nets.create("mobilenet_v2", 2, width=0.1)
    saved = checkpoint.Checkpoint(
        net=net, name="mobilenet_v2", arguments={"width": 0.1}, classes=("a", "b"), preprocess=PREPROCESS
    )
    checkpoint.save(tmp_path, saved)
    assert not job.is_finished(tmp_path)
    checkpoint.save(tmp_path, dataclasses.replace(saved, metrics={"judged": True}))
    assert job.is_finished(tmp_path)


class StopsInTheSecondEpoch(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, step: loop.Step) -> None:
        if step.epoch == 2:
            raise KeyboardInterrupt


@pytest.fixture
def stopped(tiny_photos: Path, weight_file: Path, quick: dict[str, Any], tmp_path: Path) -> Path:
    """A run that was stopped in the second of two epochs, on photos of its own beside it."""
    shutil.copytree(tiny_photos, tmp_path / "photos")
    given = {"weights": str(weight_file), "net": "mobilenet_v3_small", "mode": "full", **quick}
    with pytest.raises(KeyboardInterrupt):
        handlens.fit(tmp_path / "photos", out=tmp_path / "run", watcher=StopsInTheSecondEpoch(), **given)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("aster", "without '花朵' and with 'aster'; name the folders as before"),
        ("🌿 leaf/more", "without '花朵'; name"),
    ],
)
def test_classes_that_changed_meanwhile_are_refused(stopped: Path, to: str, sentence: str) -> None:
    """Renamed, in another order; two merged into one."""
    root = stopped.parent / "photos"
    (root / "花朵").rename(root / to)
    with pytest.raises(HandlensError, match=sentence):
        handlens.fit(out=stopped, resume=True)


@pytest.mark.parametrize("name", ["unknown", "teacher", "add", "weights"])
def test_what_was_moved_meanwhile_is_named_in_the_recipe(name: str, stopped: Path) -> None:
    recipe, gone = Recipe.read(stopped / files.RECIPE), stopped.parent / "gone"
    dataclasses.replace(recipe, **{name: str(gone)}).write(stopped / files.RECIPE)
    told = rf"begun with {name} {gone}, which is no longer there; put it back, .* as `{name}` in {stopped}.*recipe.toml"
    with pytest.raises(HandlensError, match=told):
        handlens.fit(out=stopped, resume=True)


def test_a_run_that_does_not_tell_its_classes_goes_on(stopped: Path) -> None:
    stored = files.read_json(stopped / "split.json")
    assert stored.pop("classes") == ["blue sky", "花朵", "🌿 leaf"]
    files.write_json(stopped / "split.json", stored)
    assert job.is_finished(handlens.fit(out=stopped, resume=True).folder)


@pytest.mark.parametrize("mode", ["full", "last"])
def test_the_plan_of_a_run_that_goes_on_is_of_what_is_left(
    mode: str,
    tiny_photos: Path,
    weight_file: Path,
    quick: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job.trial, "faster_precision", lambda *_: ("32-true", 110.0))  # seconds a step, three an epoch
    monkeypatch.setattr(job.last, "caching_s", lambda *_: 1200.0)
    given = {"weights": str(weight_file), "net": "mobilenet_v3_small", "mode": mode, **quick}
    first, second = StopsInTheSecondEpoch(), StopsInTheSecondEpoch()
    with pytest.raises(KeyboardInterrupt):
        handlens.fit(tiny_photos, out=tmp_path / "run", watcher=first, **given)
    with pytest.raises(KeyboardInterrupt):
        handlens.fit(out=tmp_path / "run", resume=True, watcher=second)
    (before,), (after,) = ([note for note in one.notes if "2 epochs of" in note] for one in (first, second))
    assert before.endswith(f": about {13 if mode == 'full' else 33} min")
    assert after.endswith(": about 6 min for what is left")


def test_another_number_of_processes_is_refused_before_they_are_begun(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fabric, "launch", lambda *_: pytest.fail("processes were begun"))
    with pytest.raises(HandlensError, match=r"was begun with 1 process, and goes on with 2.*--devices 1"):
        handlens.fit(out=stopped, resume=True, device="cpu", devices=2)
    with pytest.raises(HandlensError, match="nowhere is no interrupted run"):
        handlens.fit(out="nowhere", resume=True, device="cpu", devices=2)
