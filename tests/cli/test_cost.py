"""`handlens cost`: the account of a registered net, of a run, and of a module of one's own."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from handlens import cost, nets

Run = Callable[..., tuple[int, str, str]]
MODULE = """
import threading

import torch
from torch import nn

def build(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images):
        maps = self.conv(images)
        return maps if maps.sum() > 0 else -maps

class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LazyConv2d(4, 3))

class Refuses(nn.Module):
    def __init__(self, width=1.0):
        raise ValueError("width must be a half")

class Locked(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3))
        self.lock = threading.Lock()

built = build()
number = 3
class inner:
    net = build(7)
"""
TALKS = """
from torch import nn

print("imported")

class Net(nn.Conv2d):
    def __init__(self):
        print("built")
        super().__init__(3, 8, 3)

    def forward(self, images):
        print("run")
        return super().forward(images)
"""
KEYS = {
    "num_params", "macs", "peak_activation_bytes", "peak_training_bytes", "weight_bytes", "receptive_field_px",
    "layers", "net", "image_px", "sees_all", "stopped",
}  # fmt: skip


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch, command: Run, tmp_path: Path) -> Run:
    (tmp_path / "my_own_net.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talks.py").write_text(TALKS, encoding="utf-8")
    (tmp_path / "half_written.py").write_text("def f(:\n", encoding="utf-8")
    monkeypatch.delitem(sys.modules, "my_own_net", raising=False)

    return functools.partial(command, "cost")


def test_json(costs: Run) -> None:
    code, out, _ = costs("mobilenet_v3_large", "--width", 0.75, "--image-px", 192, "--json")
    assert code == 0
    found = json.loads(out)
    assert set(found) == KEYS
    assert (found["num_params"], found["macs"]) == cost.count("mobilenet_v3_large", 192, width=0.75)
    assert (found["num_params"], found["receptive_field_px"], found["sees_all"]) == (3_993_528, 595, True)
    assert set(found["weight_bytes"]) == {"float32", "float16", "int8"}
    assert set(found["layers"][0]) == {
        "name", "kind", "output_shape", "num_params", "macs", "receptive_field_px", "sees_all", "stride_px",
        "centre_px",
    }  # fmt: skip
    assert sum(layer["num_params"] for layer in found["layers"]) == found["num_params"]
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]


def test_table(costs: Run) -> None:
    code, out, _ = costs("mobilenet_v2", "--num-classes", 5)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "mobilenet_v2, one photo of 224 px"
    first = next(line for line in lines if line.startswith("features.0.0 "))
    assert first.split() == [
        "features.0.0",
        "Conv2d",
        "32",
        "x",
        "112",
        "x",
        "112",
        "864",
        "10,838,016",
        "3",
        "2",
        "0.5",
    ]
    assert f"parameters: {cost.count('mobilenet_v2', num_classes=5).num_params:,}" in lines
    assert "the last map sees, px: 491" in lines
    assert "*" not in out


def test_what_sees_everything_says_so(costs: Run) -> None:
    _, out, _ = costs("vit_ti_32")
    assert out.splitlines()[-1] == "the last map sees, px: all"
    _, out, _ = costs("mobilenet_v3_small_035")
    assert "\n* and the whole photo by a factor" in out and " 511* " in out


def test_the_bars_are_shares_of_what_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """GoogLeNet's auxiliary classifiers, almost half of its parameters, are not in them."""
    from handlens.cost import picture, report_on

    figures: list[Any] = []
    monkeypatch.setattr("handlens.figures.png", figures.append)
    picture.by_stage(report_on("googlenet", 96), "googlenet")
    bars = figures[0].axes[0]
    assert bars.get_ylabel() == "share of what is run, %"
    heights = [patch.get_height() for patch in bars.patches]
    assert sum(heights) == pytest.approx(200)


def test_picture(costs: Run, tmp_path: Path) -> None:
    code, _, _ = costs("mobilenet_v3_small_035", "--picture", "cost.png")
    assert code == 0
    with Image.open(tmp_path / "cost.png") as picture:
        assert picture.format == "PNG" and picture.width > 600
    code, _, err = costs("mobilenet_v3_small_035", "--picture", "cost.pdf")
    assert code == 2 and "ends in .png" in err


def test_a_run(costs: Run, tiny_run: Path) -> None:
    code, out, _ = costs(tiny_run, "--json")
    found = json.loads(out)
    assert (code, found["image_px"]) == (0, 32)
    assert (found["num_params"], found["macs"]) == cost.count("mobilenet_v2", 32, num_classes=3, width=0.1)
    code, _, err = costs(tiny_run, "--width", 0.5)
    assert code == 2 and "leave out --width" in err


@pytest.mark.parametrize(("name", "classes"), [("build", 3), ("built", 3), ("inner.net", 7)])
def test_a_module_of_ones_own(costs: Run, name: str, classes: int) -> None:
    code, out, _ = costs(f"my_own_net:{name}", "--image-px", 33, "--json")
    assert code == 0
    assert json.loads(out)["num_params"] == 8 * 27 + 8 + 9 * classes
    assert "" not in sys.path[:1] or sys.path.count("") <= 1


def test_what_ones_own_prints_is_no_part_of_the_answer(costs: Run) -> None:
    code, out, err = costs("talks:Net", "--image-px", 33, "--json")
    assert code == 0
    assert json.loads(out)["num_params"] == 224
    assert {"imported", "built", "run"} <= set(err.splitlines())


def test_options_are_passed_to_ones_own(costs: Run) -> None:
    assert json.loads(costs("my_own_net:build", "--num-classes", 9, "--json")[1])["num_params"] == 224 + 81
    code, _, err = costs("my_own_net:build", "--width", 2)
    assert code == 2 and "could not be built" in err and "width" in err
    code, _, err = costs("my_own_net:built", "--num-classes", 2)
    assert code == 2 and "leave out --num-classes" in err


def test_one_that_cannot_be_traced(costs: Run) -> None:
    code, out, err = costs("my_own_net:Decides", "--image-px", 32)
    assert code == 2
    assert "parameters: 224" in out and "MACs: not known" in out
    assert err.startswith("handlens: reading a tensor's value (aten._local_scalar_dense) in Decides cannot be traced")
    assert "parameters and weights are counted" in err
    code, out, _ = costs("my_own_net:Decides", "--image-px", 32, "--json")
    found = json.loads(out)
    assert code == 2 and found["macs"] is None and found["num_params"] == 224
    assert "_local_scalar_dense" in found["stopped"] and found["layers"][0]["macs"] == 216 * 900


def test_one_that_cannot_be_copied(costs: Run) -> None:
    code, out, err = costs("my_own_net:Locked", "--image-px", 32)
    assert code == 2 and "parameters: 224" in out and "MACs: not known" in out
    assert err.startswith("handlens: Locked cannot be copied: cannot pickle") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mobilnet_v2"], "did you mean mobilenet_v2"),
        (["mobilenet_v2", "--image-px", 31], "smallest that works is 32"),
        (["resnet18", "--width", 2], "takes no 'width'"),
        (["nowhere:net"], "could not be imported: No module named 'nowhere'"),
        (["half_written:net"], "could not be imported: invalid syntax"),
        (["nowhere:net"], "install it, or type this in the folder that it is in"),
        (["my_own_net:nothing"], "has no attribute 'nothing'"),
        (["my_own_net:"], "could not be imported"),
        (["my_own_net:number"], "expected a PyTorch module"),
        (["math:pi"], "is a float"),
        (["my_own_net:Lazy"], "has lazy layers, whose weights have no shape yet; run it once on a photo"),
        (["my_own_net:Refuses", "--width", 0.3], "could not be built: width must be a half"),
        (["builtins:dict"], "gave a dict"),
    ],
)
def test_bad_input(costs: Run, arguments: list[object], words: str) -> None:
    code, out, err = costs(*arguments)
    assert code == 2 and words in err and not out


def test_stages() -> None:
    from handlens.cost.picture import stages

    def of(name: str) -> list[tuple[str, int, int]]:
        return [tuple(stage) for stage in stages(cost.report_on(name).layers)]

    small = of("mobilenet_v3_small")
    assert [name for name, _, _ in small] == ["112 x 112", "56 x 56", "28 x 28", "14 x 14", "7 x 7", "head"]
    assert (sum(stage[1] for stage in small), sum(stage[2] for stage in small)) == cost.count("mobilenet_v3_small")
    assert small[-1][1] == 577 * 1024 + 1025 * 1000
    assert [name for name, _, _ in of("resnet18")] == ["112 x 112", "56 x 56", "28 x 28", "14 x 14", "7 x 7", "head"]
    assert [name for name, _, _ in of("vit_ti_32")] == ["7 x 7", "head"]
    assert [name for name, _, _ in of("resnet20")] == ["32 x 32", "16 x 16", "8 x 8", "head"]
    assert set(nets.names("vit")) > {"vit_ti_32"}
