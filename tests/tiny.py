"""A network that each runtime can be given: it knows classes by their mean colour.

It is small enough to be written down in each format by hand, without the exporters, and its answers in numpy.
"""

from __future__ import annotations

import functools
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlens.bundle import Bundle, Golden, facts, strip
from handlens.preprocess import Preprocess

CLASSES = ("blue sky", "花朵", "🌿 leaf")
COLOURS = np.array([(40, 80, 220), (220, 60, 60), (40, 180, 60)], np.float32)
PREPROCESS = Preprocess(image_px=32, resize_px=36)
SHARPNESS = 1 / 4000
WEIGHT = (2 * SHARPNESS * COLOURS).T.copy()  # (3, K): logits are less the squared distance from a class's colour
BIAS = -SHARPNESS * (COLOURS**2).sum(1)
MOST = 16  # photos at once in the ExecuTorch file
FACTS = facts("tiny", CLASSES, PREPROCESS)
RUNTIMES = ("onnx", "litert", "executorch", "openvino")


def answer(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, logits) of uint8 photos (B, H, W, 3), in numpy."""
    logits = photos.astype(np.float64).mean((1, 2)) @ WEIGHT + BIAS
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True), logits


def onnx_file(inside: str | None = FACTS, px: int = 32) -> dict[str, bytes]:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["photos"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", len(BIAS)])
        for name in ("probabilities", "logits")
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("photos", TensorProto.UINT8, ["batch", px, px, 3])],
        outputs,
        [
            numpy_helper.from_array(WEIGHT, "weight"),
            numpy_helper.from_array(BIAS, "bias"),
            numpy_helper.from_array(np.array([1, 2]), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    if inside is not None:
        helper.set_model_props(model, {"handlens": inside})
    return {"model.onnx": model.SerializeToString()}


def openvino_file(inside: str | None = FACTS) -> dict[str, bytes]:
    import openvino

    model = openvino.Core().read_model(onnx_file()["model.onnx"])
    if inside is not None:
        model.set_rt_info(inside, ["handlens"])
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(model, Path(folder, "model.xml"), compress_to_fp16=False)
        return {name: Path(folder, name).read_bytes() for name in ("model.xml", "model.bin")}


def litert_file(inside: str | None = FACTS) -> dict[str, bytes]:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], []
    graph.tensors, graph.operators = [], []

    def buffer(data: bytes = b"") -> int:
        made = schema.BufferT()
        made.data = np.frombuffer(data, np.uint8) if data else None
        model.buffers.append(made)
        return len(model.buffers) - 1

    def tensor(name: str, shape: list[int], kind: int, data: np.ndarray | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type = name, shape, kind
        made.buffer = 0 if data is None else buffer(data.tobytes())
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(code: int, inputs: list[int], output: int, options: Any = None, kind: int = 0) -> None:
        known = schema.OperatorCodeT()
        known.builtinCode = known.deprecatedBuiltinCode = code
        model.operatorCodes = [*(model.operatorCodes or []), known]
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(model.operatorCodes) - 1, inputs, [output]
        made.builtinOptions, made.builtinOptionsType = options, kind
        graph.operators.append(made)

    buffer()  # the first is empty by definition
    number, k = schema.TensorType.FLOAT32, len(BIAS)
    photos = tensor("photos", [1, 32, 32, 3], schema.TensorType.UINT8)
    floats, colour = tensor("floats", [1, 32, 32, 3], number), tensor("colour", [1, 3], number)
    axes = tensor("axes", [2], schema.TensorType.INT32, np.array([1, 2], np.int32))
    weight = tensor("weight", [k, 3], number, WEIGHT.T.copy())
    bias = tensor("bias", [k], number, BIAS)
    logits, probabilities = tensor("logits", [1, k], number), tensor("probabilities", [1, k], number)
    softmax, code, kind = schema.SoftmaxOptionsT(), schema.BuiltinOperator, schema.BuiltinOptions
    softmax.beta = 1.0
    operator(code.CAST, [photos], floats, schema.CastOptionsT(), kind.CastOptions)
    operator(code.MEAN, [floats, axes], colour, schema.ReducerOptionsT(), kind.ReducerOptions)
    dense = schema.FullyConnectedOptionsT()
    operator(code.FULLY_CONNECTED, [colour, weight, bias], logits, dense, kind.FullyConnectedOptions)
    operator(code.SOFTMAX, [logits], probabilities, softmax, kind.SoftmaxOptions)
    graph.inputs, graph.outputs = [photos], [logits, probabilities]  # not in our order: names decide
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.inputs, signature.outputs = "serving_default", [], []
    for name, index, place in (
        ("photos", photos, signature.inputs),
        ("logits", logits, signature.outputs),
        ("probabilities", probabilities, signature.outputs),
    ):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        place.append(entry)
    model.signatureDefs = [signature]
    if inside is not None:
        about = schema.MetadataT()
        about.name, about.buffer = "handlens", buffer(inside.encode())
        model.metadata = [about]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return {"model.tflite": bytes(builder.Output())}


def executorch_file(inside: str | None = FACTS) -> dict[str, bytes]:
    import torch

    class Net(torch.nn.Module):
        def forward(self, photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = photos.to(torch.float32).mean((1, 2)) @ torch.from_numpy(WEIGHT) + torch.from_numpy(BIAS)
            return logits.softmax(1), logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.exir import to_edge

        example = torch.zeros(MOST, 32, 32, 3, dtype=torch.uint8)
        program = torch.export.export(
            Net(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MOST)},)
        )
        edge = to_edge(program, constant_methods={"handlens": inside} if inside is not None else None)
        return {"model.pte": edge.to_executorch().buffer}


FILES = {"onnx": onnx_file, "litert": litert_file, "executorch": executorch_file, "openvino": openvino_file}


@functools.cache
def make(runtime: str, inside: str | None = FACTS) -> dict[str, bytes]:
    """The artifact of the tiny network for one of RUNTIMES, with these facts inside it. Not to be changed."""
    return FILES[runtime](inside)


def photo(index: int, noise: float = 20.0) -> bytes:
    """A PNG of 40 x 48 px, of about the colour of a class."""
    pixels = np.random.default_rng(index).normal(COLOURS[index % len(COLOURS)], noise, (40, 48, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def golden(index: int) -> Golden:
    stripped = strip(photo(index))
    return Golden(photo=stripped, probabilities=tuple(answer(PREPROCESS.load(stripped)[None])[0][0]))


def bundle(runtime: str = "onnx", **changes: Any) -> Bundle:
    """A bundle of the tiny network with three golden photos; `changes` are fields of Bundle."""
    given: dict[str, Any] = {
        "runtime": runtime,
        "precision": "float32",
        "net": "tiny",
        "classes": CLASSES,
        "preprocess": PREPROCESS,
        "card": {"data": "drawn", "licence": "CC0-1.0", "test": {"top1": 1.0, "top1_ci95": [0.9, 1.0]}},
        "golden": tuple(golden(index) for index in range(3)),
    }
    if "artifact" not in changes:
        given["artifact"] = make(runtime)
    return Bundle(**given | changes)
