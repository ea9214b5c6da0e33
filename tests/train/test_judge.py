"""The end of a run: what is written of it."""

from __future__ import annotations

import importlib.metadata
import platform

import pytest

import handlens
from handlens import checkpoint
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
