"""The list of experiments, and what running one gives."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from handlens import experiments
from handlens.errors import HandlensError
from handlens.experiments.result import Result, panels


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_each_has_a_module_and_says_what_it_is(name: str) -> None:
    module = importlib.import_module(f"handlens.experiments.{name.replace('-', '_')}")
    assert module.__doc__ and module.experiment.__doc__
    known = inspect.signature(module.experiment).parameters
    assert all(parameter.default is not inspect.Parameter.empty for parameter in known.values())
    trains = "epochs" in known
    assert ("photos" in known) == ("progress" in known) == trains
    assert "seed" in known or not trains


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("botleneck", "did you mean bottleneck"),
        ("batchnorm", "batch-norm"),
        ("xyz", "`handlens experiment` lists them"),
    ],
)
def test_a_mistyped_name(name: str, hint: str) -> None:
    with pytest.raises(HandlensError, match=f"no experiment named '{name}'") as error:
        experiments.run(name)
    assert hint in error.value.hint


@pytest.mark.parametrize(("name", "setting"), [("bottleneck", "epochs"), ("relu-collapse", "photos")])
def test_a_setting_that_it_does_not_have(name: str, setting: str) -> None:
    with pytest.raises(HandlensError, match=f"{name} takes no '{setting}'"):
        experiments.run(name, **{setting: 1})


def test_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def experiment(seed: int = 0, size: int = 5) -> Result:
        numbers = {"nan": float("nan"), "rows": ({"at": [1, 2.5, float("inf")]},), "on": True}
        return Result(finding="so", tables={"t": [{"a": 1}]}, numbers=numbers, data={}, figure=panels(1)[0])

    monkeypatch.setitem(sys.modules, "handlens.experiments.bottleneck", SimpleNamespace(experiment=experiment))
    report = experiments.run("bottleneck", progress=lambda done, total: None, size=7)
    assert report.settings == {"seed": 0, "size": 7}
    facts: dict[str, Any] = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert facts["numbers"] == {"nan": None, "rows": [{"at": [1, 2.5, None]}], "on": True}
    assert (facts["finding"], facts["tables"]) == ("so", {"t": [{"a": 1}]})
    assert facts["paper"] == "arXiv 1409.4842" and facts["versions"].keys() == {"handlens", "torch", "numpy"}
    assert report.result.png().startswith(b"\x89PNG")


def test_the_list_loads_nothing_heavy() -> None:
    code = "import sys, handlens.experiments; print({'torch', 'numpy', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
