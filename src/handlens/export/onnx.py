"""ONNX: one file for onnxruntime, and what many other tools read."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from handlens.errors import missing_extra
from handlens.export.converting import converting
from handlens.nets import Net
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Preprocess

FILE = "model.onnx"
FACTS = "handlens"  # the key in the file's metadata


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
    onnx.helper.set_model_props(model, {FACTS: facts})
    model.producer_name = "handlens"
    model.doc_string = ""
    return {FILE: model.SerializeToString()}


def exchanged(artifact: Mapping[str, bytes], old: Net, new: Net) -> dict[str, bytes] | None:
    """The artifact of `new` from that of `old`, a network of the same layers: the same graph, other weights.

    That takes a hundredth of the time of a conversion. None where the file does not hold each weight as it is.
    """
    import onnx

    before, after = old.state_dict(), new.state_dict()
    if str(old) != str(new) or before.keys() != after.keys() or _behind(old) != _behind(new):
        return None
    model = onnx.load_model_from_string(artifact[FILE])
    stored = {entry.name: entry for entry in model.graph.initializer}
    for name, value in after.items():
        entry = stored.get(f"net.{name}")
        if entry is None or not np.array_equal(onnx.numpy_helper.to_array(entry), before[name].numpy()):
            return None
        entry.CopyFrom(onnx.numpy_helper.from_array(value.numpy(), entry.name))
    return {FILE: model.SerializeToString()}


def _behind(net: Net) -> Any:
    """What of a network is in the graph behind its logits, and not among its weights."""
    like = net.familiar
    return net.temperature, like and (like.depth, like.centres.tolist(), like.slope, like.offset)


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
