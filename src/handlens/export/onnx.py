"""ONNX: one file for onnxruntime, and what many other tools read."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable
from typing import Any

import torch

from handlens.bundle import FACTS_KEY
from handlens.errors import missing_extra
from handlens.export.converting import converting
from handlens.nets import Net
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Preprocess

FILE = "model.onnx"


def convert(net: Net, preprocess: Preprocess, facts: str, float16: bool = False) -> dict[str, bytes]:
    """{"model.onnx": ...}: `photos` uint8 (batch, H, W, 3) -> `probabilities`, `logits` float32 (batch, K), any batch.

    The facts are in the file's metadata under "handlens". With `float16` weights and arithmetic are halves; photos
    and answers keep their types. Raises HandlensError naming the operation that ONNX cannot express.
    """
    example = torch.zeros(2, preprocess.image_px, preprocess.image_px, 3, dtype=torch.uint8)
    network = FromPixels(copy.deepcopy(net).half() if float16 else net, preprocess).eval()
    with converting("onnx", net):
        try:
            import onnx
            import onnxscript  # noqa: F401
        except ImportError:
            raise missing_extra("export-onnx", "onnx and onnxscript") from None
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
            input_names=["photos"],
            output_names=["probabilities", "logits"],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _name_nodes(model.graph.node)
    onnx.helper.set_model_props(model, {FACTS_KEY: facts})
    model.producer_name = "handlens"
    model.doc_string = ""
    return {FILE: model.SerializeToString()}


def _name_nodes(nodes: Iterable[Any]) -> None:
    """Name each node by the module it comes from ("net.features.0.0/Conv"); drop the exporter's notes on it.

    Those hold stack traces with paths of the exporting machine.
    """
    taken: dict[str, int] = {}
    for node in nodes:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        name = f"{scopes[-2] if len(scopes) > 1 else ''}/{node.op_type}"
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        node.ClearField("metadata_props")
