"""What the documents say about the code is what the code says: networks, recipes, installation."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer.main
from PIL import Image

from handlens import cli, cost, nets
from handlens.cli import nets as nets_command
from handlens.train import Recipe

ROOT = Path(__file__).parents[2]
README, RECIPES, NETWORKS = (ROOT / name for name in ("README.md", "docs/recipes.md", "docs/networks.md"))
COUNTED = ("mobilenet_v1_025", "mobilenet_v3_small", "shufflenet_v2_x0_5", "resnet20", "vit_ti_32", "alexnet", "vgg11")


def cells(text: str) -> list[list[str]]:
    """The cells of the Markdown table rows whose first cell is in backticks."""
    rows = re.findall(r"^\| (`[^|]+`) \|(.*)\|$", text, re.M)
    return [[first.strip("`"), *(cell.strip() for cell in rest.split("|"))] for first, rest in rows]


@pytest.fixture
def make(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("docs/make.py")


@pytest.fixture
def written_counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Parameters and MACs as the page has them, in place of counting all networks."""
    counts = {row[0]: [int(cell.replace(",", "")) for cell in row[3:5]] for row in cells(NETWORKS.read_text("utf-8"))}
    monkeypatch.setattr(nets_command, "costs_of", lambda names: {name: counts.get(name, [0, 0]) for name in names})
    return counts


@pytest.mark.usefixtures("written_counts")
def test_pages_are_current(make: ModuleType) -> None:
    pages = make.pages()
    assert set(pages) == {README, RECIPES, NETWORKS}
    for path, text in pages.items():
        assert path.read_text("utf-8") == text, f"{path.name} is out of date: make docs"


def test_every_network_is_on_the_page(written_counts: dict[str, list[int]]) -> None:
    assert set(written_counts) == set(nets.names())


@pytest.mark.parametrize(
    "name", [name if name in COUNTED else pytest.param(name, marks=pytest.mark.slow) for name in nets.NETS]
)
def test_counts_are_current(name: str, written_counts: dict[str, list[int]]) -> None:
    assert written_counts[name] == list(cost.count(name))


def test_a_new_family_is_written_without_a_title(make: ModuleType) -> None:
    line = {
        "name": "new", "family": "novel", "year": 2026, "num_params": 1_500_000, "macs": 2000, "image_px": 32,
        "top1": None, "source": "", "weights": [],
    }  # fmt: skip
    assert make.networks([line]).endswith(
        "## novel\n\n" + make.HEADER + "| `new` | 2026 | 32 | 1,500,000 | 2,000 |  |  |  |\n"
    )
    assert make.summary([line]).endswith("| novel | 1 | 2026 | 1.5 M | 0 |\n")


def test_a_source_of_weights_is_written_once_with_its_best(make: ModuleType) -> None:
    weights = [
        {"source": "timm", "top1": 70.5},
        {"source": "torchvision", "top1": 71.0},
        {"source": "timm", "top1": 72.0},
    ]
    assert make.best_weights({"weights": weights}) == "timm 72.0, torchvision 71.0"


def test_a_page_without_its_mark_is_refused(make: ModuleType) -> None:
    with pytest.raises(ValueError):
        make.between("no mark here", "families", "text")


# ---- recipes ---------------------------------------------------------------------------------------------------------
FIELDS = [row for row in cells(RECIPES.read_text("utf-8").partition("<!-- chosen -->")[0]) if len(row) == 4]


def test_every_field_of_a_recipe_is_there_once() -> None:
    assert sorted(row[0] for row in FIELDS) == sorted(field.name for field in dataclasses.fields(Recipe))


@pytest.mark.parametrize("row", FIELDS, ids=lambda row: row[0])
def test_field(row: list[str]) -> None:
    name, default, option, meaning = row
    field = next(field for field in dataclasses.fields(Recipe) if field.name == name)
    assert default == f"`{json.dumps(field.default)}`"
    options = [parameter.name for parameter in typer.main.get_command(cli.app).commands["train"].params]
    assert (option == "✓") == (name in options)
    values = typing.get_args(typing.get_type_hints(Recipe)[name])
    assert all(f"`{value}`" in meaning for value in values)
    assert len(meaning) > 15


# ---- the picture -----------------------------------------------------------------------------------------------------
def test_the_readmes_picture_shows_what_is_drawn(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    path = ROOT / "docs" / "images" / "flowers.png"
    assert path.stat().st_size < 300_000
    sheet = script("docs/sheet.py")
    drawn = sheet.sheet(sheet.drawn.draw(tmp_path / "flowers", photos_per_class=1))
    with Image.open(path) as picture:
        assert picture.size == drawn.size
        column = (
            0,
            0,
            sheet.PX,
            drawn.height,
        )  # the first picture of each class; small, for a palette's colours differ
        ours, theirs = (image.convert("RGB").crop(column).resize((12, 60)) for image in (picture, drawn))
    assert np.abs(np.subtract(ours, theirs, dtype=float)).mean() < 4, "make docs draws it again"


# ---- installation ----------------------------------------------------------------------------------------------------
def test_torch_without_cuda_is_the_pinned_one() -> None:
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    for page in (README,):
        (version,) = re.findall(r'"torch==([\d.]+)" --index-url', page.read_text("utf-8"))
        assert f"\ntorch=={version}\n" in pins


def test_links_lead_somewhere() -> None:
    for page in (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text("utf-8")
        for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.M)
                assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target
