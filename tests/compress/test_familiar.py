"""What lowers the logits of strange photos stays float in an INT8 file."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from handlens import bundle, export
from handlens.compress.ladder import TARGETS
from handlens.nets.familiar import Familiar
from handlens.preprocess import Preprocess

CONTRACT = Preprocess(image_px=32, resize_px=36)
PHOTOS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
NEEDS = {"onnx": "onnx", "litert": "ai_edge_quantizer", "executorch": "executorch.exir", "openvino": "nncf"}
CENTRES = torch.nn.functional.normalize(torch.randn(40, 1280, generator=torch.Generator().manual_seed(0)), dim=1)
MADE: dict[str, dict[str, bytes]] = {}  # by target: quantising takes seconds


def quantised(to: str, shaken: Any) -> dict[str, bytes]:
    pytest.importorskip(NEEDS[to])
    if to in MADE:
        return MADE[to]
    net = export.folded(shaken("mobilenet_v2", width=0.1))
    net.familiar = Familiar(depth=0, centres=CENTRES, slope=5.0, offset=-3.0)
    facts = bundle.facts("mobilenet_v2", ("a", "b", "c", "d", "e"), CONTRACT)
    quantise = importlib.import_module(f"handlens.compress.{to}").quantizer(net, CONTRACT, facts, PHOTOS)
    made: dict[str, bytes] = quantise("minmax", ())
    probabilities, logits = export.runner(to, 1)(made)(PHOTOS)
    assert np.isfinite(logits).all() and probabilities.shape == (8, 5)
    MADE[to] = made
    return made


@pytest.mark.parametrize("to", [to if to == "onnx" else pytest.param(to, marks=pytest.mark.slow) for to in TARGETS])
def test_the_centres_are_in_the_file_as_they_are(to: str, shaken: Any) -> None:
    content = b"".join(quantised(to, shaken).values())
    stored = [values.tobytes() in content for values in (CENTRES.numpy(), np.ascontiguousarray(CENTRES.numpy().T))]
    assert any(stored)


def test_onnx_rounds_nothing_behind_the_network(shaken: Any) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_model_from_string(quantised("onnx", shaken)["model.onnx"]).graph
    behind = [node for node in graph.node if node.name.startswith("/")]
    assert {"Exp", "Log", "Sqrt", "ReduceMax"} <= {node.op_type for node in behind}
    rounded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert not rounded & {output for node in behind for output in node.output if node.op_type not in ("Mul", "Add")}
