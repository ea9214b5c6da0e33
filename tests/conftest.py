"""What every test may ask for."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from handlens.export.job import Source

SHARED = Path(os.environ.get("HANDLENS_SHARED") or Path(__file__).resolve().parents[2] / "shared")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference figures, weights and photos beside the project; a test that needs it skips without."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("the shared folder of references, weights and photos is not beside the project")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Ctrl-C arrives, here and in the commands that tests start, though a background job begins with it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The console script's function: arguments -> (exit code, standard output, standard error)."""
    from handlens import cli

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["handlens", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), *capsys.readouterr()

    return called


COLOURS = {"blue sky": (40, 80, 220), "花朵": (220, 60, 60), "🌿 leaf": (40, 180, 60)}  # classes in sorted order


@pytest.fixture(scope="session")
def tiny_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes with twelve 40 x 48 px photos each, told apart by their colour. Not to be changed."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(12):
            pixels = np.clip(random.normal(colour, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.jpg")
    return root


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_photos: Path) -> Path:
    """A checkpoint of a small net whose head is fitted to the tiny photos. Not to be changed."""
    import torch

    from handlens import checkpoint, nets, photos
    from handlens.preprocess import Preprocess

    torch.manual_seed(0)
    arguments = {"width": 0.1}
    net = nets.create("mobilenet_v2", len(COLOURS), **arguments)
    preprocess = Preprocess(image_px=32, resize_px=36)
    images, labels = next(photos.batches(photos.scan(tiny_photos), preprocess, 36))
    inputs = torch.from_numpy(preprocess.normalise(images))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics of these photos
        net.train()(inputs)
        features = net.eval().embed(inputs)
        padded = torch.cat([features, features.new_ones(len(features), 1)], 1)
        solved = torch.linalg.pinv(padded, rtol=1e-3) @ (8.0 * torch.eye(len(COLOURS))[torch.from_numpy(labels)])
        net.classifier[-1].weight.copy_(solved[:-1].T)
        net.classifier[-1].bias.copy_(solved[-1])
    run = tmp_path_factory.mktemp("run")
    checkpoint.save(
        run,
        checkpoint.Checkpoint(
            net=net, name="mobilenet_v2", arguments=arguments, classes=tuple(COLOURS), preprocess=preprocess
        ),
    )
    return run


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """tests/tiny.py: a network of a few numbers as a file for each runtime, and as a bundle."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def split_run(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, tiny_photos: Path) -> Path:
    """The tiny run, with a split of the tiny photos. Not to be changed."""
    import shutil

    from handlens import photos

    run = tmp_path_factory.mktemp("split") / "run"
    shutil.copytree(tiny_run, run)
    found = photos.scan(tiny_photos)
    sha256 = photos.examine(found).sha256
    photos.write_split(run / "split.json", photos.split(found, sha256, fractions=(0.5, 0.25, 0.25)), sha256, 0)
    return run


@pytest.fixture(scope="session")
def source(split_run: Path, tiny_photos: Path) -> Source:
    """What is exported of the tiny run."""
    from handlens import checkpoint, photos
    from handlens.export.job import Source

    found = photos.scan(tiny_photos)
    splits = photos.read_split(split_run / "split.json", found, photos.examine(found).sha256)
    return Source.of("tiny", checkpoint.load(split_run), splits)
