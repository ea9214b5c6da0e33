"""docs/cost.md is what the code counts and what benchmarks/results/counters.json holds; the causes it names add up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from handlens import cost, nets

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cost.md"
RESULT: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "counters.json").read_text("utf-8"))
NETWORKS = ROOT / "docs" / "networks.md"
COUNTED = ("mobilenet_v3_small_035", "resnet20", "vit_ti_32", "alexnet")


@pytest.fixture(scope="module")
def page(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("docs/cost.py")


def table(mark: str) -> dict[str, list[str]]:
    """The cells of a written table by network."""
    text = PAGE.read_text("utf-8").split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0]
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", text, re.M)
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows}


def test_every_network_is_in_the_table_of_costs() -> None:
    assert list(table("costs")) == nets.names(), "make docs"


def test_every_network_that_was_counted_by_others_is_in_theirs() -> None:
    """One that is new to the registry is not, until benchmarks/counters.py has run."""
    assert list(table("counters")) == list(RESULT["nets"])
    assert set(RESULT["nets"]) <= set(nets.names()) and len(RESULT["nets"]) >= 90


@pytest.mark.parametrize(
    "name", [name if name in COUNTED else pytest.param(name, marks=pytest.mark.slow) for name in nets.NETS]
)
def test_the_table_of_costs_is_current(name: str, page: ModuleType) -> None:
    written = page.costs(page.rows([name])).splitlines()[-1]
    cells = [cell.strip() for cell in written.split("|")[2:-2]]
    assert table("costs")[name][:-1] == cells, "make docs"


def test_the_fronts_are_current(page: ModuleType) -> None:
    """By the exact counts of docs/networks.md, which have a test of their own."""
    lines = re.findall(r"^\| `([^`]+)` (?:\|[^|]*){2}\| ([\d,]+) \| ([\d,]+) ", NETWORKS.read_text("utf-8"), re.M)
    exact = {name: (int(params.replace(",", "")), int(macs.replace(",", ""))) for name, params, macs in lines}
    counts = {name: exact[name] for name in nets.names()}
    rows = [
        {
            **dict.fromkeys(("peak_activation_bytes", "peak_training_bytes", "receptive_field_px"), 1),
            "name": name,
            "image_px": 1,
            "top1": nets.entry(name).top1,
            "sees_all": False,
            "macs": macs,
            "num_params": num_params,
            "weight_bytes": cost.memory.WeightBytes(4, 2, 1),
        }
        for name, (num_params, macs) in counts.items()
    ]
    written = [line.split("|")[-2].strip() for line in page.costs(rows).splitlines()[2:]]
    assert [cells[-1] for cells in table("costs").values()] == written
    assert sum("MACs" in cell for cell in written) > 5


def test_the_table_of_counters_is_current(page: ModuleType) -> None:
    text = PAGE.read_text("utf-8")
    assert page.between(text, "counters", page.counters(RESULT)) == text, "make docs"


@pytest.mark.parametrize("name", COUNTED)
def test_what_was_measured_is_what_we_count(name: str) -> None:
    assert RESULT["nets"][name]["macs"] == cost.count(name).macs


@pytest.mark.parametrize("name", RESULT["nets"])
def test_the_causes_add_up(name: str) -> None:
    """To the last digit: what each tool says is ours with the parts that the page names."""
    row = RESULT["nets"][name]
    without_attention = row["macs"] - row["attention"]
    causes = {
        "fvcore": without_attention + 2 * row["batch_norm"] + 5 * row["other_norm"] + row["adaptive_pool"],
        "torchinfo": row["by_torchinfos_rule"],
        "ptflops": without_attention + row["biases"],
        "ptflops_modules": row["by_ptflops_modules"] + row["by_ptflops_functions"],
    }
    for tool, said in causes.items():
        assert row[tool] == said or (row[tool] is None and row[f"{tool}_reason"]), tool
    assert (row["attention"] > 0) == name.startswith("vit")


def test_few_are_missing() -> None:
    assert sum(row["fvcore"] is None for row in RESULT["nets"].values()) <= 2
    assert all(row["torchinfo"] and row["ptflops"] and row["ptflops_modules"] for row in RESULT["nets"].values())


@pytest.mark.parametrize(
    ("said", "text"), [(None, "–"), (2_000_000, "as ours"), (2_100_000, "2.1 (+5.0 %)"), (2_000_100, "2.0 (+0.0050 %)")]
)
def test_differences(page: ModuleType, said: int | None, text: str) -> None:
    assert page.difference(said, 2_000_000) == text


def test_our_parts_are_counted_again(script: Callable[[str], ModuleType]) -> None:
    counters = script("benchmarks/counters.py")
    for name in ("resnet20", "vit_ti_32"):
        found = counters.ours(name)
        assert found == {key: RESULT["nets"][name][key] for key in found}
