"""INT8 for OpenVINO: the float model quantised by NNCF."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from handlens import export
from handlens.compress.calls import inside
from handlens.compress.observe import Observer, Plain, Quantize
from handlens.errors import missing_extra
from handlens.export.converting import converting
from handlens.export.openvino import FILE, WEIGHTS, describe
from handlens.nets import Net
from handlens.preprocess import Preprocess
from handlens.run import openvino_runtime

OBSERVERS: tuple[Observer, ...] = ("minmax", "mse")  # those that NNCF has; it corrects biases by itself
LAYERS = ("Convolution", "GroupConvolution", "MatMul")  # kinds with weights


def quantizer(net: Net, preprocess: Preprocess, facts: str, photos: np.ndarray, plain: Plain | None = None) -> Quantize:
    """What makes INT8 files of one folded network: (observer, names of modules kept in float32) -> artifact.

    photos: uint8 (N, H, W, 3) to calibrate with. Weights are symmetric with a scale for each output channel,
    activations asymmetric where they have both signs.
    plain: what gives the float artifact where it need not be converted here.
    Without an observer the weights alone are in eight bits, and all arithmetic is float.
    """
    try:
        import nncf
        import openvino
    except ImportError:
        raise missing_extra("export-openvino", "openvino and nncf") from None
    artifact = plain() if plain else export.convert(net, preprocess, "openvino", facts)
    order = _convolutions(net, preprocess.image_px)

    def quantize(observer: Observer | None, keep_float: Collection[str] = ()) -> dict[str, bytes]:
        with converting("openvino", net), tempfile.TemporaryDirectory() as folder:
            from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet

            ranges = (
                RangeEstimatorParametersSet.MINMAX if observer == "minmax" else RangeEstimatorParametersSet.HISTOGRAM
            )
            weights = openvino.Tensor(np.frombuffer(artifact[WEIGHTS], np.uint8).copy())
            model = openvino_runtime.core().read_model(artifact[FILE], weights)
            left = nncf.IgnoredScope(
                names=[*_kept(model, net, order, keep_float), *(_behind(model) if net.familiar else [])]
            )
            if observer:
                made = nncf.quantize(
                    model,
                    nncf.Dataset([photo[None] for photo in photos]),
                    preset=nncf.QuantizationPreset.MIXED,
                    subset_size=len(photos),
                    ignored_scope=left,
                    advanced_parameters=AdvancedQuantizationParameters(activations_range_estimator_params=ranges),
                )
                # NNCF leaves squeeze-and-excite in float: its weights, a third of MobileNetV3's, are stored as int8.
                made = nncf.compress_weights(made, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=left)
            else:
                made = model
                _make_weights_small(model, left.names)
            describe(made, facts)
            openvino.save_model(made, Path(folder, FILE), compress_to_fp16=False)
            return {name: Path(folder, name).read_bytes() for name in (FILE, WEIGHTS)}

    return quantize


def _make_weights_small(model: Any, keep_float: Collection[str]) -> None:
    """Store the weights of convolutions and products as int8 with a scale for each output channel, in the model itself.

    The scales are float32: NNCF's are float16, in which those of a MobileNetV2 have two digits.
    """
    from openvino import opset13 as opset

    for op in model.get_ordered_ops():
        kind, weights = op.get_type_name(), op.input_value(1).get_node() if op.get_input_size() > 1 else None
        if kind not in LAYERS or op.get_friendly_name() in keep_float:
            continue
        if weights is None or weights.get_type_name() != "Constant":
            continue
        values = weights.data
        last = kind == "MatMul" and not op.get_attributes()["transpose_b"]
        kept = (values.ndim - 1,) if last else (0, 1) if kind == "GroupConvolution" else (0,)
        others = tuple(axis for axis in range(values.ndim) if axis not in kept)
        scale = np.maximum(np.abs(values).max(others, keepdims=True), 1e-12).astype(np.float32) / 127
        small = opset.convert(opset.constant(np.rint(values / scale).astype(np.int8)), "f32")
        op.input(1).replace_source_output(opset.multiply(small, opset.constant(scale)).output(0))


def _convolutions(net: Net, image_px: int) -> list[str]:
    """The names of the convolutions in the order in which they run, which is how OpenVINO numbers them."""
    names: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: names.append(name))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.inference_mode():
        net(torch.zeros(1, 3, image_px, image_px))
    for hook in hooks:
        hook.remove()
    return names


def _kept(model: Any, net: Net, order: list[str], keep_float: Collection[str]) -> list[str]:
    """OpenVINO's names of what stays float: all that is done to the pixels, and what the named modules compute.

    Convolutions are numbered as they run; matrices are known by their weights.
    """
    kept = _before(model)
    parameters = [value for name in keep_float for value in net.get_submodule(name).parameters()]
    matrices = [value.detach().numpy() for value in parameters if value.ndim == 2]
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        if found := re.match(r"convolution(?:_(\d+))?/", name):
            module = order[int(found[1] or 0)]
            if any(inside(module, given) for given in keep_float):
                kept.append(name)
        elif op.get_type_name() == "MatMul" and op.input_value(1).get_node().get_type_name() == "Constant":
            weights = op.input_value(1).get_node().data
            weights = weights if op.get_attributes()["transpose_b"] else weights.T
            if any(np.array_equal(weights, matrix) for matrix in matrices):
                kept.append(name)
    return kept


def _before(model: Any) -> list[str]:
    """OpenVINO's names of what makes the network's input of the pixels: all before the first layer with weights."""
    ops = model.get_ordered_ops()
    first = next(op for op in ops if op.get_type_name() in LAYERS)
    within = _leading_to(model, first.input_value(0))
    return [op.get_friendly_name() for op in ops if op.get_friendly_name() in within and op.get_input_size()]


def _leading_to(model: Any, value: Any) -> set[str]:
    """OpenVINO's names of what a value is computed from, and of what gives it."""
    within = {value.get_node().get_friendly_name()}
    for op in reversed(model.get_ordered_ops()):
        if op.get_friendly_name() in within:
            within.update(given.get_node().get_friendly_name() for given in op.input_values())
    return within


def _behind(model: Any) -> list[str]:
    """OpenVINO's names of what stays float behind the network, where its logits are lowered: all but what makes them.

    What lowers them ends in a subtraction, whose first input is the network's logits.
    """
    lowered = model.output("logits").get_node().input_value(0).get_node()
    assert lowered.get_type_name() == "Subtract"
    within = _leading_to(model, lowered.input_value(0))
    return [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_friendly_name() not in within and op.get_type_name() not in ("Constant", "Result")
    ]
