"""INT8 for onnxruntime: QDQ nodes around its integer kernels, unsigned activations and signed per-channel weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from handlens import export
from handlens.compress import observe
from handlens.compress.calls import inside
from handlens.compress.observe import Observer, Plain, Quantize, Ranges
from handlens.errors import missing_extra
from handlens.export.onnx import FILE
from handlens.nets import Net
from handlens.preprocess import Preprocess

OPS = ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "MaxPool", "Relu", "Clip")
BATCH = 8  # photos whose activations are held at once


OBSERVERS = observe.OBSERVERS


def quantizer(
    net: Net,
    preprocess: Preprocess,
    facts: str,
    photos: np.ndarray,
    reduce_range: bool = False,
    plain: Plain | None = None,
) -> Quantize:
    """What makes INT8 files of one folded network: (observer, names of modules kept in float32) -> artifact.

    photos: uint8 (N, H, W, 3) to calibrate with. reduce_range: 7-bit weights, for x86 processors without VNNI, whose
    8-bit products saturate. Operations that onnxruntime has no integer kernel for (hard-swish, hard-sigmoid, softmax)
    stay float, and so does what is around the network.
    plain: what gives the float artifact where it need not be converted here.
    Without an observer the weights alone are in eight bits, and all arithmetic is float.
    """
    try:
        import onnx
        import onnxruntime.quantization  # noqa: F401
    except ImportError:
        raise missing_extra("export-onnx", "onnx and onnxruntime") from None
    artifact = plain() if plain else export.convert(net, preprocess, "onnx", facts)
    content = artifact[FILE]
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content))
    nodes = list(model.graph.node)
    first = next(index for index, node in enumerate(nodes) if node.op_type in ("Conv", "MatMul", "Gemm"))
    candidates = [node for node in nodes[first:] if node.op_type in OPS and node.name.startswith("net")]
    constants = {initializer.name for initializer in model.graph.initializer}
    names = {name for node in candidates for name in (*node.input, *node.output)} - constants - {""}
    names |= {node.output[0] for node in nodes if node.op_type in ("Relu", "Clip")}
    seen = Ranges(lambda: activations(content, sorted(names), photos))

    def quantize(observer: Observer | None, keep_float: Collection[str] = ()) -> dict[str, bytes]:
        if observer is None:
            return {FILE: _with_small_weights(model, candidates)}
        wanted = [node.name for node in candidates if not _inside(node.name, keep_float)]
        return {FILE: _with_qdq(model, seen.by(observer), wanted, reduce_range)}

    return quantize


def _with_qdq(model: Any, ranges: Mapping[str, tuple[float, float]], nodes: list[str], reduce_range: bool) -> bytes:
    """The model with QuantizeLinear and DequantizeLinear around the named nodes."""
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    add_infer_metadata(copied)  # shapes are known; else they are inferred by way of a file, which not every path bears
    limits = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        copied,
        True,  # a scale for each output channel
        reduce_range,
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, limits),
        nodes,
        [],
        list(OPS),
        {"WeightSymmetric": True, "ActivationSymmetric": False, "MinimumRealRange": 1e-4},
    )
    quantizer.quantize_model()
    made = quantizer.model.model
    made.ClearField("metadata_props")
    made.metadata_props.extend(model.metadata_props)
    made.producer_name = "handlens"
    made.graph.ClearField("value_info")
    content: bytes = made.SerializeToString()
    return content


def _with_small_weights(model: Any, nodes: Iterable[Any]) -> bytes:
    """The model with the weights of these nodes as int8 and a scale for each output channel.

    They are cast and multiplied where they were constants, which onnxruntime does once, when it loads the file.
    DequantizeLinear, made for this, it computes for every photo: MobileNetV3-Large took twice as long.
    """
    import onnx
    from onnx import helper, numpy_helper

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    stored = {initializer.name: initializer for initializer in copied.graph.initializer}
    unpacking: list[Any] = []
    for node in nodes:
        name = node.input[1] if node.op_type in ("Conv", "Gemm", "MatMul") else ""
        if name not in stored:
            continue
        tensor = stored.pop(name)
        weights = numpy_helper.to_array(tensor)
        first = node.op_type == "Conv" or any(each.name == "transB" and each.i for each in node.attribute)
        others = tuple(range(1, weights.ndim)) if first else tuple(range(weights.ndim - 1))
        scale = np.maximum(np.abs(weights).max(others, keepdims=True), 1e-12).astype(np.float32) / 127
        tensor.CopyFrom(numpy_helper.from_array(np.rint(weights / scale).astype(np.int8), f"{name}.int8"))
        copied.graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        unpacking += [
            helper.make_node("Cast", [f"{name}.int8"], [f"{name}.cast"], f"{name}/Cast", to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [name], f"{name}/Mul"),
        ]
    rest = list(copied.graph.node)
    copied.graph.ClearField("node")
    copied.graph.node.extend([*unpacking, *rest])
    copied.producer_name = "handlens"
    copied.graph.ClearField("value_info")
    content: bytes = copied.SerializeToString()
    return content


def _inside(node: str, modules: Collection[str]) -> bool:
    """Whether a node belongs to one of the modules: its name is "net.features.0.0/Conv"."""
    module = node.rpartition("/")[0].removeprefix("net.")
    return any(inside(module, name) for name in modules)


def activations(model_bytes: bytes, names: Iterable[str], photos: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """The values of the named tensors, a batch of photos at a time."""
    import onnx
    import onnxruntime

    model = onnx.load_model_from_string(model_bytes)
    present = {output.name for output in model.graph.output}
    names = list(names)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in present)
    options: Any = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for start in range(0, len(photos), BATCH):
        values = session.run(names, {"photos": photos[start : start + BATCH]})
        yield dict(zip(names, values, strict=True))
