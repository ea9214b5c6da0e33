"""LiteRT (TensorFlow Lite): one .tflite file, by litert-torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from handlens.bundle import FACTS_KEY
from handlens.errors import missing_extra
from handlens.export.converting import converting
from handlens.nets import Net
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Preprocess

FILE = "model.tflite"
OUTPUTS = ("probabilities", "logits")
_HALVES = {  # ai-edge-quantizer's recipe: weights of convolutions and linear layers stored as float16
    "regex": ".*",
    "operation": "*",
    "algorithm_key": "float_casting",
    "op_config": {
        "weight_tensor_config": {"num_bits": 16, "symmetric": True, "granularity": "TENSORWISE", "dtype": "FLOAT"},
        "compute_precision": "FLOAT",
        "explicit_dequantize": True,
    },
}


def convert(net: Net, preprocess: Preprocess, facts: str, float16: bool = False) -> dict[str, bytes]:
    """{"model.tflite": ...}: `photos` uint8 (batch, H, W, 3) -> `probabilities`, `logits` float32 (batch, K).

    Loaded, the file takes one photo at a time; after the interpreter's `resize_tensor_input` it takes any number
    where the input's `shape_signature` says -1, which is tried out here. litert-torch itself makes files of a fixed
    batch only. The facts are a metadata buffer named "handlens". With `float16` the weights of convolutions and
    linear layers are stored as halves, and computed with as float32 on a CPU.
    Raises HandlensError naming the operation that LiteRT cannot express.
    """
    try:
        import ai_edge_quantizer  # noqa: F401
    except ImportError:
        raise missing_extra("export-litert", "litert-torch and ai-edge-quantizer") from None
    network = FromPixels(net, preprocess).eval()
    shape = (image_px := preprocess.image_px, image_px, 3)
    with converting("litert", net):
        import litert_torch
        from ai_edge_litert.tools import flatbuffer_utils
        from ai_edge_quantizer.quantizer import Quantizer

        photo = torch.zeros(1, *shape, dtype=torch.uint8)
        with _ByMeans():
            made = litert_torch.convert(network, sample_kwargs={"photos": photo}).model_content()
        if float16:
            quantizer = Quantizer(bytearray(made), [_HALVES])
            made = bytes(quantizer.quantize().quantized_model)
        model = read(made)
        _describe(model, facts)
        fixed = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
        _free_batch(model)
        free = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
        return {FILE: free if _any_batch(free, shape) else fixed}


def read(content: bytes) -> Any:
    """A file's model. What the quantiser has made is read as bytes, which would be written one by one: for minutes."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for buffer in model.buffers:
        if isinstance(buffer.data, (bytes, bytearray)):
            buffer.data = np.frombuffer(buffer.data, np.uint8)
    return model


class _ByMeans(TorchFunctionMode):
    """Layer norm written out: litert-torch's own joins the batch with the tokens."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _layer_norm(*args, **(kwargs or {})) if func is F.layer_norm else func(*args, **(kwargs or {}))


def _layer_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight + bias


def _describe(model: Any, facts: str) -> None:
    """Put the facts into the model's metadata, and give its input and outputs their names."""
    from ai_edge_litert.schema_py_generated import BufferT, MetadataT

    buffer, entry = BufferT(), MetadataT()
    buffer.data = np.frombuffer(facts.encode(), np.uint8)
    entry.name, entry.buffer = FACTS_KEY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    graph, (signature,) = model.subgraphs[0], model.signatureDefs
    for name, index in zip(("photos", *OUTPUTS), (*graph.inputs, *graph.outputs), strict=True):
        graph.tensors[index].name = name
        for entry in (*signature.inputs, *signature.outputs):
            if entry.tensorIndex == index:
                entry.name = name


def _free_batch(model: Any) -> None:
    """Let the first dimension be of any size in what was converted for one photo.

    Most operations take their sizes from their inputs; reshapes and slices have them as constants, where -1 means
    whatever is left.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    codes = [code.builtinCode for code in model.operatorCodes]
    reshape, piece, strided = (getattr(schema.BuiltinOperator, x) for x in ("RESHAPE", "SLICE", "STRIDED_SLICE"))
    if strided not in codes:
        added = schema.OperatorCodeT()
        added.builtinCode = added.deprecatedBuiltinCode = strided
        added.version = 1
        model.operatorCodes.append(added)
        codes.append(strided)

    def constant(index: int) -> np.ndarray | None:
        data = model.buffers[graph.tensors[index].buffer].data
        return None if data is None else np.frombuffer(bytes(data), np.int32).copy()

    def store(values: np.ndarray, like: int) -> int:
        """A new constant; others may share the one that it is like."""
        buffer, tensor = schema.BufferT(), copy.copy(graph.tensors[like])
        buffer.data = values.astype(np.int32).view(np.uint8)
        tensor.buffer = len(model.buffers)
        tensor.name = f"sizes_{len(graph.tensors)}"
        model.buffers.append(buffer)
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    for operator in graph.operators:
        code, sizes = codes[operator.opcodeIndex], graph.tensors[operator.inputs[0]].shape
        if code not in (reshape, piece, strided):
            continue
        constants = [values for index in operator.inputs[1:] if (values := constant(index)) is not None and values.size]
        if len(constants) != len(operator.inputs) - 1:  # computed, or a reshape to no dimensions
            continue
        if code == reshape:  # what carries the batch is the first dimension, or in it
            operator.inputs[1] = store(np.array([-1, *constants[0][1:]]), operator.inputs[1])
        elif code == piece:  # takes no size that is not known; STRIDED_SLICE does
            begin, size = constants
            options = schema.StridedSliceOptionsT()
            options.endMask = sum(1 << place for place, whole in enumerate(size == sizes) if whole)
            operator.builtinOptions, operator.builtinOptionsType = options, schema.BuiltinOptions.StridedSliceOptions
            operator.opcodeIndex = codes.index(strided)
            end = store(begin + size, operator.inputs[2])
            operator.inputs = [*operator.inputs[:2], end, store(np.ones_like(size), operator.inputs[2])]
        else:
            ends = enumerate(constants[1] == sizes)
            operator.builtinOptions.endMask |= sum(1 << place for place, whole in ends if whole)
    for index in (*graph.inputs, *graph.outputs):
        tensor = graph.tensors[index]
        tensor.shapeSignature = [-1, *tensor.shape[1:]]


def _any_batch(data: bytes, shape: tuple[int, ...]) -> bool:
    """Whether three photos at once get the answers that each gets alone."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    index = interpreter.get_input_details()[0]["index"]

    def answers(photos: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(index, photos.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, photos)
        interpreter.invoke()
        return np.concatenate(
            [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()], -1
        )

    photos = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    try:
        alone = np.concatenate([answers(photo[None]) for photo in photos])
        together = answers(photos)
    except (RuntimeError, ValueError):  # a size inside the graph that is not free
        return False
    return together.shape == alone.shape and bool(np.allclose(together, alone, rtol=1e-3, atol=1e-3))
