"""The end of a run: what is written of it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import handlens
from handlens import checkpoint, photos, run
from handlens.train import Run, judge


def test_a_run_from_the_source_has_no_packages_to_name(full_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("handlens", "lightning-fabric"):
            raise importlib.metadata.PackageNotFoundError(name)
        return f"{name}'s"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(judge, "version", version)
    versions = {"handlens": handlens.__version__, "torch": "torch's", "numpy": "numpy's", "pillow": "pillow's"}
    assert judge.versions() == {"python": platform.python_version(), **versions}
    assert checkpoint.read_facts(full_run.folder)["handlens_version"] == handlens.__version__


@pytest.mark.parametrize("by_features", [True, False])
def test_copies_count_once_however_a_run_is_judged(
    tiny_run: Path, tiny_photos: Path, tmp_path: Path, by_features: bool
) -> None:
    for folder in (path for path in tiny_photos.iterdir() if path.is_dir()):
        shutil.copytree(folder, tmp_path / folder.name)
        shutil.copy(folder / "00.jpg", tmp_path / folder.name / "again.jpg")
    classifier, found = run.load(tiny_run), photos.scan(tmp_path)
    images = np.stack([classifier.preprocess.load(found.path(index)) for index in range(len(found))])
    logits = classifier.infer(images)[1]
    trained: Any = SimpleNamespace(logits=(lambda _: logits) if by_features else None)
    scores = judge._score(classifier, trained, found, 1.0, lambda *_: None)
    assert scores.num_photos == 39 and scores.effective_num_photos == pytest.approx(39**2 / (33 + 3 * 4))
