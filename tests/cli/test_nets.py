"""`handlens nets`: the registry as a table and as JSON."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handlens import nets
from handlens.cli import nets as command

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def listed(command: Run) -> Run:
    return functools.partial(command, "nets")


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting all networks takes long, and is tested elsewhere."""
    monkeypatch.setattr(command, "costs_of", lambda names: {name: [1_230_000, 4_560_000] for name in names})


@pytest.mark.usefixtures("uncounted")
def test_json_has_what_scripts_rely_on(listed: Run) -> None:
    code, out, _ = listed("--family", "mobilenet", "--json")
    assert code == 0
    lines = {line["name"]: line for line in json.loads(out)}
    assert list(lines) == nets.names("mobilenet")
    for line in lines.values():
        assert {"name", "family", "year", "num_params", "macs", "image_px", "top1", "source", "weights"} == set(line)
    v2 = lines["mobilenet_v2"]
    assert (v2["image_px"], v2["year"], v2["top1"], v2["num_params"]) == (224, 2018, 72.0, 1_230_000)
    assert {"torchvision", "timm"} <= {file["source"] for file in v2["weights"]}


@pytest.mark.usefixtures("uncounted")
def test_table(listed: Run) -> None:
    code, out, _ = listed("--family", "mobilenet")
    assert code == 0
    assert out.startswith("mobilenet\n")
    line = next(line for line in out.splitlines() if line.startswith("mobilenet_v2 "))
    assert line.split()[1:6] == ["2018", "1.23", "5", "224", "72.0"]
    assert "torchvision" in line


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_a_terminal(listed: Run, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, err = listed()
    assert max(map(len, out.splitlines())) <= columns
    assert ("its source" in out) == (columns == 120)
    assert ("tells where each top-1 comes from" in err) == (columns == 80)


@pytest.mark.usefixtures("uncounted")
def test_every_network_is_listed_grouped_by_family(listed: Run) -> None:
    lines = json.loads(listed("--json")[1])
    assert {line["name"] for line in lines} == set(nets.names())
    changes = [one for one, other in itertools.pairwise(line["family"] for line in lines) if one != other]
    assert len(changes) == len(set(changes)) == len({line["family"] for line in lines}) - 1


def test_an_unknown_family(listed: Run) -> None:
    code, out, err = listed("--family", "mobile", "--json")
    assert (code, out) == (2, "")
    assert "--family is 'mobile', expected mobilenet" in err


def test_costs_are_counted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from handlens import cost

    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    first = command.costs_of(["mobilenet_v2"])
    assert first == {"mobilenet_v2": [3_504_872, 300_774_272]}
    monkeypatch.setattr(cost, "count", lambda name: pytest.fail(f"{name} is counted again"))
    assert command.costs_of(["mobilenet_v2"]) == first


def test_costs_are_counted_anew_by_another_way_of_counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from handlens import cost

    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(cost, "count", lambda name: (1, 2))
    assert command.costs_of(["resnet20"]) == {"resnet20": [1, 2]}
    shutil.copytree(Path(str(cost.__file__)).parent, tmp_path / "cost")
    monkeypatch.setattr(cost, "__file__", str(tmp_path / "cost" / "__init__.py"))
    monkeypatch.setattr(cost, "count", lambda name: pytest.fail(f"{name} is counted again"))
    assert command.costs_of(["resnet20"]) == {"resnet20": [1, 2]}
    with (tmp_path / "cost" / "counts.py").open("a") as source:
        source.write("# another rule")
    monkeypatch.setattr(cost, "count", lambda name: (3, 4))
    assert command.costs_of(["resnet20"]) == {"resnet20": [3, 4]}


def test_a_cache_that_cannot_be_written_is_no_reason_not_to_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "file"))
    assert command.costs_of(["mobilenet_v1_025"])["mobilenet_v1_025"][0] == 470_072
    assert "not kept" in capsys.readouterr().err
