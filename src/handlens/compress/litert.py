"""INT8 for LiteRT: the float file quantised by ai-edge-quantizer, with ranges and layers of our choosing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from handlens import export
from handlens.compress import observe
from handlens.compress.calls import inside
from handlens.compress.observe import Observer, Plain, Quantize, Ranges
from handlens.errors import missing_extra
from handlens.export import litert
from handlens.export.converting import converting
from handlens.export.litert import FILE, OUTPUTS
from handlens.nets import Net
from handlens.preprocess import Preprocess

OBSERVERS = observe.OBSERVERS
# Hard-swish, means and products stay float: XNNPACK has no integer kernels for them in LiteRT, and an all-integer
# MobileNetV3 falls into 20 pieces that run three times slower than float.
OPS = (
    "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "PAD", "TRANSPOSE", "CONCATENATION", "MAX_POOL_2D",
    "AVERAGE_POOL_2D", "RESHAPE",
)  # fmt: skip
_INT8 = {
    "activation_tensor_config": {"num_bits": 8, "symmetric": False, "granularity": "TENSORWISE", "dtype": "INT"},
    "weight_tensor_config": {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"},
    "compute_precision": "INTEGER",
    "explicit_dequantize": False,
}
_WEIGHTS = {
    "weight_tensor_config": _INT8["weight_tensor_config"],
    "compute_precision": "FLOAT",
    "explicit_dequantize": True,
}
_WITH_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_PIXELS = r"handlens\.nets\.pixels\.FromPixels;\d+"  # the scaling of pixels, before the network


def quantizer(net: Net, preprocess: Preprocess, facts: str, photos: np.ndarray, plain: Plain | None = None) -> Quantize:
    """What makes INT8 files of one folded network: (observer, names of modules kept in float32) -> artifact.

    photos: uint8 (N, H, W, 3) to calibrate with. Activations are signed and asymmetric, weights symmetric with a scale
    for each output channel.
    plain: what gives the float artifact where it need not be converted here.
    Without an observer the weights alone are in eight bits, and all arithmetic is float.
    """
    try:
        import ai_edge_quantizer  # noqa: F401
    except ImportError:
        raise missing_extra("export-litert", "ai-edge-quantizer") from None
    artifact = plain() if plain else export.convert(net, preprocess, "litert", facts)
    content = artifact[FILE]
    seen = Ranges(lambda: activations(content, photos))

    def quantize(observer: Observer | None, keep_float: Collection[str] = ()) -> dict[str, bytes]:
        ranges = seen.by(observer) if observer else {}
        with converting("litert", net):
            from ai_edge_quantizer.quantizer import Quantizer

            if not observer:
                maker = Quantizer(bytearray(content), _recipe(content, (), _WITH_WEIGHTS, _WEIGHTS))
                made = maker.quantize(enable_progress_report=False).quantized_model
                return {FILE: _tidied(bytes(made))}
            maker = Quantizer(bytearray(content), _recipe(content, keep_float))
            found = maker.calibrate({_signature(content): [{"photos": photos[:1]}]})  # for its names and shapes
            values: dict[str, Any] = {
                name: {key: np.full_like(old, ranges[name][key == "max"]) for key, old in limits.items()}
                if name in ranges
                else limits
                for name, limits in found.items()
            }
            made = maker.quantize(values, enable_progress_report=False).quantized_model
            made = _tidied(bytes(made))
        return {FILE: made}

    return quantize


def _tidied(model: bytes) -> bytes:
    """The model with names on its float outputs, short names elsewhere, and each equal vector stored once.

    The quantiser leaves the outputs' names on the integers before them. litert-torch's names of modules, and a zero
    for each output channel twice, were 12 % of a MobileNetV2.
    """
    import flatbuffers

    class Sharing(flatbuffers.Builder):  # type: ignore[misc]
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, values: np.ndarray) -> int:  # noqa: N802
            key = values.dtype.str, values.tobytes()
            if key not in self.written:
                self.written[key] = super().CreateNumpyVector(values)
            return self.written[key]

    read = litert.read(model)
    graph, (signature,) = read.subgraphs[0], read.signatureDefs
    for number, tensor in enumerate(graph.tensors):
        if number not in graph.inputs:
            tensor.name = str(number)
    for name, index in zip(OUTPUTS, graph.outputs, strict=True):
        graph.tensors[index].name = name
        next(entry for entry in signature.outputs if _text(entry.name) == name).tensorIndex = index
    builder = Sharing(len(model))
    builder.Finish(read.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _recipe(
    model: bytes, keep_float: Collection[str], ops: Sequence[str] = OPS, config: Mapping[str, Any] = _INT8
) -> list[dict[str, Any]]:
    """The recipe, in which later lines overrule earlier ones. A ";" is put behind the name of an output."""
    lines = [
        {"regex": ".*", "operation": op, "algorithm_key": "min_max_uniform_quantize", "op_config": config} for op in ops
    ]
    kept = [
        _PIXELS,
        *(re.escape(name) for name in _tensors(model) if any(inside(_module(name), module) for module in keep_float)),
    ]
    lines += [
        {"regex": f"^(?:{'|'.join(kept)});?$", "operation": op, "algorithm_key": "no_quantize", "op_config": {}}
        for op in ops
    ]
    return lines


def _module(tensor: str) -> str:
    """The module that made a tensor, from litert-torch's name for it: each part is a class, "_", and a module's name.

    "...MobileNetV2_net/...Stages_features/...Conv2d_0;1" -> "features.0"
    """
    parts = [part.rpartition(".")[2].partition("_")[2] for part in tensor.partition(";")[0].split("/")]
    return ".".join(parts[1:]).removeprefix("net.")


def _interpreter(model: bytes, batch: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=model,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    details = interpreter.get_input_details()[0]
    if details["shape_signature"][0] == -1:
        interpreter.resize_tensor_input(details["index"], [batch, *details["shape"][1:]])
    interpreter.allocate_tensors()
    return interpreter


def _tensors(model: bytes) -> list[str]:
    return [detail["name"] for detail in _interpreter(model, 1).get_tensor_details()]


def _signature(model: bytes) -> str:
    return next(iter(_interpreter(model, 1).get_signature_list()))


def activations(model: bytes, photos: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """The values of every float tensor that depends on the photo, a photo at a time.

    Without minus infinity, with which max pools are padded: in a range it makes a scale infinite, and LiteRT ends the
    process that computes such a file.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all tensors are kept is what we want
        interpreter = _interpreter(model, 1)
    place = interpreter.get_input_details()[0]["index"]
    made = {index for op in interpreter._get_ops_details() for index in op["outputs"]}
    wanted = [
        (detail["name"], detail["index"])
        for detail in interpreter.get_tensor_details()
        if detail["index"] in made and detail["dtype"] == np.float32
    ]
    for photo in photos:
        interpreter.set_tensor(place, photo[None])
        interpreter.invoke()
        values = {name: interpreter.get_tensor(index) for name, index in wanted}
        yield {name: each[each > -np.inf] if each.min() == -np.inf else each for name, each in values.items()}
