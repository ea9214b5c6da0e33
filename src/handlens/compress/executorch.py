"""INT8 for ExecuTorch: the exported program quantised by torchao's PT2E for XNNPACK."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from handlens.compress.calls import inside
from handlens.compress.observe import Observer, Quantize
from handlens.errors import HandlensError
from handlens.export.converting import converting
from handlens.export.executorch import FILE, LARGEST_BATCH, export, lower
from handlens.nets import Net
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Preprocess

_CLIPS = (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default)  # what ReLU6 is exported as
_CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)

OBSERVERS: tuple[Observer, ...] = ("minmax", "mse")  # those that torchao has


def quantizer(net: Net, preprocess: Preprocess, facts: str, photos: np.ndarray) -> Quantize:
    """What makes INT8 files of one folded network: (observer, names of modules kept in float32) -> artifact.

    photos: uint8 (N, H, W, 3) to calibrate with. Activations are signed and asymmetric, weights symmetric with a scale
    for each output channel. Hard-swish and products stay float where XNNPACK's quantiser does not know them.
    """

    def quantize(observer: Observer | None, keep_float: Collection[str] = ()) -> dict[str, bytes]:
        if observer is None:
            raise HandlensError(
                "XNNPACK computes no convolution in float with weights in eight bits", "use another --to"
            )
        with converting("executorch", net):
            from torchao.quantization.pt2e import move_exported_model_to_eval
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            plain = export(FromPixels(net, preprocess).eval(), preprocess).module()
            prepared = prepare_pt2e(plain, _where(observer, keep_float))
            move_exported_model_to_eval(prepared)
            with torch.inference_mode():
                for first in range(0, len(photos), LARGEST_BATCH):
                    prepared(torch.from_numpy(photos[first : first + LARGEST_BATCH].copy()))
            converted = convert_pt2e(prepared)
            move_exported_model_to_eval(converted)
            return {FILE: lower(export(converted, preprocess), facts)}

    return quantize


def _where(observer: Observer, keep_float: Collection[str]) -> Any:
    """XNNPACK's quantiser for all of the network but the named modules, and not for the scaling of pixels before it."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import QuantizationConfig
    from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    class WithReLU6(XNNPACKQuantizer):  # type: ignore[misc]
        """Rounds what a convolution gives after its ReLU6.

        Its own patterns know ReLU only: before ReLU6 they spend most of the 256 levels on values that it cuts off. The
        partitioner makes one kernel of the three.
        """

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for clip in model.graph.nodes:
                if clip.target not in _CLIPS:
                    continue
                conv = clip.args[0]
                if conv.target not in _CONVOLUTIONS or len(conv.users) > 1 or not (wanted(clip) and wanted(conv)):
                    continue
                inputs = dict(zip(conv.args[:2], (activation, usual.weight), strict=True))
                conv.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=inputs, _annotated=True)
                clip.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=activation, _annotated=True)
            return super().annotate(model)

    usual = get_symmetric_quantization_config(is_per_channel=True)
    kind = MinMaxObserver if observer == "minmax" else HistogramObserver
    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=kind.with_args(eps=2**-12),
    )

    def wanted(node: torch.fx.Node) -> bool:
        if node.op == "get_attr":  # a weight or bias, which goes with the operation that reads it
            return True
        module = _module(node)
        return module is not None and not any(inside(module, name) for name in keep_float)

    chosen = WithReLU6().set_global(QuantizationConfig(activation, activation, usual.weight, usual.bias, False))
    return chosen.set_filter_function(wanted)


def _module(node: torch.fx.Node) -> str | None:
    """The name of the network's module that a node of the program comes from; None for what is outside the network."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    innermost = str(stack[-1]) if stack else ""
    return innermost.removeprefix("net").removeprefix(".") if innermost.startswith("net") else None
