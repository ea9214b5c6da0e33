"""The tables of results say what benchmarks/results says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULT = {
    "command": "handlens train flower_photos --mode full",
    "net": "mobilenet_v2",
    "mode": "full",
    "weights": "v2.safetensors",
    "image_px": 224,
    "epochs": 8,
    "test": {"top1": 0.9512, "top1_ci95": [0.921, 0.9704], "num_photos": 292, "top5": None},
    "validation": {"top1": 0.94},
    "seconds": 960.0,
    "device": "cpu (2 threads)",
    "date": "2026-01-31",
    "commit": "0123456",
    "versions": {"torch": "2.14.1"},
}
ROW = "| **95.1%** (92.1% to 97.0%) of 292 | 90.0% | 16 min | cpu (2 threads) |"


@pytest.fixture
def table(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("benchmarks/table.py")


def write(folder: Path, name: str, **changes: Any) -> None:
    result = {key: value for key, value in {**RESULT, **changes}.items() if value is not None}
    (folder / name).write_text(json.dumps(result), encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md"])
def test_the_pages_are_current(table: ModuleType, page: str) -> None:
    text = table.written(ROOT / page, table.FOLDERS[page])
    assert text == (ROOT / page).read_text("utf-8"), "make docs brings it up to date"
    assert text.count("](" + table.FOLDERS[page] + "/flowers_") >= 5


def test_a_row(table: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "v2-full.json", to_beat=0.9)
    header, rule, row = table.table(table.read(tmp_path), "results").splitlines()
    assert row == f"| [mobilenet_v2](results/v2-full.json) | full | v2.safetensors | 224 | 8 {ROW}"
    assert header.count("|") == rule.count("|") == row.count("|")


def test_without_a_figure_to_beat_its_cell_is_empty(table: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "v2-full.json")
    assert " of 292 |  | 16 min |" in table.table(table.read(tmp_path), "results")


def test_rows_are_in_order_of_mode_and_network(table: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "1.json", mode="scratch")
    write(tmp_path, "2.json", net="mobilenet_v3_small")
    write(tmp_path, "3.json")
    write(tmp_path, "4.json", mode="head")
    assert [result["file"] for result in table.read(tmp_path)] == ["4.json", "3.json", "2.json", "1.json"]


def test_other_measurements_are_passed_over(table: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "startup.json").write_text('{"command": "handlens --help", "seconds": 0.1}')
    (tmp_path / "unknown.json").write_text('{"command": "python unknown.py", "net": "mobilenet_v2", "mode": "head"}')
    assert table.read(tmp_path) == []


@pytest.mark.parametrize("key", ["command", "test", "commit", "versions", "device"])
def test_a_result_that_lacks_something_is_named(table: ModuleType, tmp_path: Path, key: str) -> None:
    write(tmp_path, "v2.json", **{key: None})
    with pytest.raises(SystemExit, match=rf"v2\.json has no {key}$"):
        table.read(tmp_path)


@pytest.mark.parametrize("page", ["nothing", "<!-- results -->", "<!-- /results --> <!-- results -->"])
def test_a_page_without_the_marks_is_refused(table: ModuleType, page: str) -> None:
    with pytest.raises(SystemExit, match="has no <!-- results -->"):
        table.between(page, table.BEGIN, table.END, "x")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h")]
)
def test_durations(table: ModuleType, seconds: float, text: str) -> None:
    assert table.duration(seconds) == text
