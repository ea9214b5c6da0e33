"""What the documents tell people to type works.

Every `handlens ...` in the README and in docs is parsed by the real command line. The lines in shell blocks are run,
a page from top to bottom in one folder, on tiny photos; with a quick stand-in for the training in the fast tests, and
with the real one (of an epoch) in the slow ones.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

import handlens
from handlens import bundle, checkpoint, cli, files, train
from handlens import photos as photos_room
from handlens.cli import nets as nets_command
from handlens.train.recipe import choose

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LONG = ("demo", "draw-flowers", "export", "serve")  # have tests of their own: here they are parsed
TRAIN_FOR_MINUTES = ("normalisation", "batch-norm", "residual", "multipliers", "linear-bottleneck")  # of experiments
TRANSLATED = {"tour.zh.md": "tour.md"}  # the same commands, run once


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's shell blocks that begin with handlens, also that of a virtual environment."""
    blocks = re.findall(r"^```(?:sh|bat)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.M)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [found[1] for line in lines if (found := re.match(r"(?:\.venv[/\\]\w+[/\\])?(handlens .*)", line))]


def inline(page: Path) -> list[str]:
    """The commands that a page names within its text."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.M)
    return re.findall(r"`(handlens [^`]+)`", text)


def in_help() -> list[str]:
    """The examples in the help of the commands."""
    helps = [command.callback.__doc__ or "" for command in cli.app.registered_commands if command.callback]
    return [line.strip().partition("   ")[0] for text in helps for line in re.findall(r"^ +handlens .*$", text, re.M)]


PYTHON = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.M)
    if block.startswith("import handlens\n")
]
COMMANDS = sorted({command for page in PAGES for command in (*shell_lines(page), *inline(page))} | set(in_help()))
STORIES = [page for page in PAGES if shell_lines(page) and page.name not in TRANSLATED]


def parse(command: str) -> dict[str, Any]:
    """The values of a command line, by the real parser; nothing is run."""
    group = typer.main.get_command(cli.app)
    with group.make_context("handlens", shlex.split(command)[1:]) as context:
        name, found, rest = group.resolve_command(context, [*getattr(context, "_protected_args", ()), *context.args])
        return found.make_context(name, rest, parent=context).params


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 25
    told = {
        "README.md", "confidence.md", "cost.md", "examine.md", "int8.md", "learning-curve.md",
        "phone-apps.md", "recipes.md", "serve.md", "tour.md", "web.md", "your-photos.md",
    }  # fmt: skip
    assert told == {page.name for page in STORIES}
    assert len(PYTHON) == 3


@pytest.mark.parametrize(("translated", "original"), TRANSLATED.items())
def test_a_translation_has_the_same_commands_and_pictures(translated: str, original: str) -> None:
    here, there = (ROOT / "docs" / name for name in (translated, original))
    pictures = [re.findall(r"\]\((images/[^)]+)\)", page.read_text("utf-8")) for page in (here, there)]
    assert shell_lines(here) == shell_lines(there)
    assert pictures[0] == pictures[1]
    assert all((ROOT / "docs" / picture).is_file() for picture in pictures[0])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_takes_it(command: str) -> None:
    try:
        parse(command if command.count(" ") > 1 else f"{command} --help")  # a command alone is named, not typed
    except typer.Exit as left:  # --help, --version
        assert not left.exit_code
    except Exception as error:  # typer's own, which say what is wrong only when they are shown
        pytest.fail(f"{command}: {type(error).__name__} {getattr(error, 'message', error)}")


@pytest.mark.parametrize(
    "wrong",
    ["handlens tarin photos", "handlens train photos --epoch 3", "handlens predict", "handlens predict a b --top x"],
)
def test_a_wrong_command_is_seen(wrong: str) -> None:
    with pytest.raises(Exception) as error:  # typer keeps its classes to itself
        parse(wrong)
    assert type(error.value).__name__ in ("UsageError", "NoSuchOption", "MissingParameter", "BadParameter")


# ---- running them ----------------------------------------------------------------------------------------------------
@pytest.fixture
def place(tmp_path: Path, tiny_photos: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the pages speak of."""
    from PIL import Image, ImageOps

    monkeypatch.chdir(tmp_path)
    classes = [folder for folder in sorted(tiny_photos.iterdir()) if folder.is_dir()]
    shutil.copytree(tiny_photos, tmp_path / "photos")
    for name in ("flowers.zip", "flowers-int8.zip", "flowers-8bit.zip"):
        bundle.write(tmp_path / name, tiny.bundle())
    rows = [f"photos/{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(tiny_photos.rglob("*.jpg"))]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    (tmp_path / "recipe.toml").write_text("mixup_alpha = 0.2\n")
    for folder in ("holiday", "more"):
        (tmp_path / folder).mkdir()
        for number, name in enumerate(("a.jpg", "b.jpg")):
            photo = Image.open(classes[0] / f"{number:02}.jpg")
            photo.crop((2, 2, *photo.size)).save(tmp_path / folder / name)  # none that is learned
    shutil.copy(classes[1] / "01.jpg", tmp_path / "garden.jpg")
    for folder in ("new-photos", "corrected-photos"):
        for source in classes:
            (tmp_path / folder / source.name).mkdir(parents=True)
            for number in range(3):
                mirrored = ImageOps.mirror(Image.open(source / f"{number:02}.jpg"))
                mirrored.save(tmp_path / folder / source.name / f"{folder}-{number}.jpg")
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> None:
    """In place of training: the recipe is checked, and the run's folder is a copy of a tiny one."""

    def fit(photos: Any = "", *, out: Any = None, resume: bool = False, watcher: Any = None, **given: Any) -> train.Run:
        for name in ("device", "devices", "num_nodes"):
            given.pop(name, None)
        folder = Path(out or "runs/unnamed-1")
        if resume:
            assert not photos and not given
            recipe = train.Recipe.read(folder / "recipe.toml")
        else:
            if earlier := given.get("continue_run"):
                photos = photos or checkpoint.read_facts(earlier)["recipe"]["photos"]
            if added := given.get("add"):
                assert len(photos_room.scan(added))
            found = photos_room.scan(photos)
            sha256 = photos_room.examine(found).sha256
            recipe = choose(found.counts().tolist(), {**given, "photos": str(Path(photos).resolve())})
            shutil.copytree(tiny_run, folder)
            photos_room.write_split(folder / "split.json", photos_room.split(found, sha256), sha256, recipe.seed)
            recipe.write(folder / "recipe.toml")
            facts = checkpoint.read_facts(folder) | {"recipe": dataclasses.asdict(recipe)}
            files.write_json(folder / files.FACTS, facts)
        if watcher:
            watcher.started(folder)
        test = {"top1": 1.0, "top1_ci95": [0.9, 1.0], "num_photos": 3}
        return train.Run(folder, recipe, handlens.load(folder).classes, {"test": test})

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(nets_command, "costs_of", lambda names: {name: [1, 1] for name in names})


@pytest.fixture
def undownloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of published ImageNet weights, which would be downloaded: random ones."""
    import torch

    from handlens import nets
    from handlens.nets import weights as published

    find = published.find

    def random(net: str, weights: str, *rest: Any, **given: Any) -> published.WeightFile:
        if weights == "imagenet":
            weights = str(tmp_path / f"{net}.pth")
            torch.save(nets.create(net).state_dict(), weights)
        return find(net, weights, *rest, **given)

    monkeypatch.setattr(published, "find", random)


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], None]:
    def run(arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["handlens", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code, (arguments, capsys.readouterr().err)

    return run


def story(page: Path, training: bool = False) -> Iterator[list[str]]:
    """The commands of a page; with `training` those of experiments that train as well, on tiny photos for an epoch."""
    for line in shell_lines(page):
        arguments = shlex.split(line)[1:]
        long = arguments[0] == "experiment" and arguments[1] in TRAIN_FOR_MINUTES
        if arguments[0] not in LONG and (training or not long):
            yield [*arguments, "--photos", "photos", "--epochs", "1"] if long else arguments


@pytest.mark.usefixtures("quick", "place", "undownloaded")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page.name == "tour.md")) for page in STORIES],  # 20 s
    ids=lambda page: page.name,
)
def test_a_page_from_top_to_bottom(page: Path, type_in: Callable[[list[str]], None]) -> None:
    for arguments in story(page):
        type_in(arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("undownloaded")
@pytest.mark.parametrize("page", STORIES, ids=lambda page: page.name)
def test_a_page_with_real_training(page: Path, place: Path, type_in: Callable[[list[str]], None]) -> None:
    import torch

    from handlens import nets

    small = "mobilenet_v3_small_035"
    torch.save(nets.create(small).state_dict(), place / "small.pth")
    for arguments in story(page, training=True):
        if arguments[0] != "train":
            type_in(arguments)
        elif not {"--resume", "--num-nodes"} & {*arguments}:  # a finished run cannot; a second machine is not there
            more = ["--epochs", "1"]
            if "--continue" not in arguments:
                more += ["--net", small, "--image-px", "32"]
                more += [] if "none" in arguments else ["--weights", str(place / "small.pth")]
            type_in([*arguments, *more])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("page", "block"), PYTHON, ids=lambda value: value.name if isinstance(value, Path) else "")
def test_python(page: Path, block: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlens.fit(place / "photos", out="runs/flowers")
    exec(compile(block, str(page), "exec"), {})
    assert capsys.readouterr().out
    assert "fit(" not in block or len(block.strip().splitlines()) <= 5  # "in five lines"
