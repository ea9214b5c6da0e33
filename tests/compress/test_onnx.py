"""The INT8 form of an ONNX file: what is in integers, what stays float, and that it still runs as before."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handlens import bundle, export
from handlens.compress import onnx as quantising
from handlens.compress.observe import Quantize
from handlens.nets.fold import fold_batch_norm
from handlens.preprocess import Preprocess
from handlens.run import onnx_runtime

CONTRACT = Preprocess(image_px=32, resize_px=36)
FACTS = bundle.facts("mobilenet_v2", ("a", "b", "c", "d", "e"), CONTRACT)
PHOTOS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def quantizer(shaken: Any) -> Callable[..., Quantize]:
    """Of one network, converted once."""
    net = fold_batch_norm(shaken("mobilenet_v2", width=0.1))
    plain = export.convert(net, CONTRACT, "onnx", FACTS)
    return functools.partial(quantising.quantizer, net, CONTRACT, FACTS, PHOTOS, plain=lambda: plain)


@pytest.fixture(scope="module")
def quantize(quantizer: Callable[..., Quantize]) -> Quantize:
    return quantizer()


def model_of(artifact: dict[str, bytes]) -> Any:
    import onnx

    return onnx.load_model_from_string(artifact["model.onnx"])


def test_every_convolution_is_in_integers_with_a_scale_a_channel(quantize: Quantize) -> None:
    model = model_of(quantize("minmax", ()))
    held = {initializer.name: initializer for initializer in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 52
    for node in convolutions:
        weight = made_by[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        values, scales = held[weight.input[0]], held[weight.input[1]]
        assert values.data_type == 3  # INT8
        assert list(scales.dims) == [values.dims[0]]
        assert made_by[node.input[0]].op_type == "DequantizeLinear"
    assert Counter(node.op_type for node in model.graph.node)["Clip"] == 0, "ReLU6 is the range of the integers"


def test_the_file_still_answers_and_carries_its_facts(quantize: Quantize) -> None:
    artifact = quantize("mse", ())
    assert onnx_runtime.start(artifact, 1)[1] == FACTS
    probabilities, logits = onnx_runtime.start(artifact, 1)[0](PHOTOS[:3])
    assert probabilities.shape == logits.shape == (3, 5)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)


def test_no_shape_is_inferred_by_way_of_a_file(quantize: Quantize, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    def by_file(*_: object, **__: object) -> None:
        pytest.fail("onnx opens no file below a Windows folder with letters of another code page")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes_path", by_file)
    assert model_of(quantize("minmax", ())).metadata_props


def test_layers_that_are_kept_stay_float(quantize: Quantize) -> None:
    model = model_of(quantize("minmax", ("features.0.0", "features.3.conv")))
    made_by = {output: node for node in model.graph.node for output in node.output}
    plain = [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv"
        and (node.input[1] not in made_by or made_by[node.input[1]].op_type != "DequantizeLinear")
    ]
    assert plain == [
        "net.features.0.0/Conv",
        "net.features.3.conv.0.0/Conv",
        "net.features.3.conv.1.0/Conv",
        "net.features.3.conv.2/Conv",
    ]


def test_a_reduced_range_uses_seven_bits(quantizer: Callable[..., Quantize]) -> None:
    model = model_of(quantizer(reduce_range=True)("minmax", ()))
    import onnx

    weights = [onnx.numpy_helper.to_array(held) for held in model.graph.initializer if held.data_type == 3]
    assert max(int(np.abs(values).max()) for values in weights if values.ndim == 4) <= 64


def test_weights_alone_are_floats_again_once_the_file_is_loaded(
    quantizer: Callable[..., Quantize], quantize: Quantize, with_rounded_weights: Any, tmp_path: Path
) -> None:
    import onnx
    import onnxruntime

    artifact = quantize(None, ())
    model = model_of(artifact)
    small = [onnx.numpy_helper.to_array(held) for held in model.graph.initializer if held.data_type == 3]
    assert len(small) == 53 and all(np.abs(values).max() == 127 for values in small)  # 52 convolutions, the classifier
    large = [held for held in model.graph.initializer if held.data_type == 1 and len(held.dims) > 1]
    assert all(np.prod(held.dims) == max(held.dims) for held in large), "a scale for each channel"
    assert onnx_runtime.start(artifact, 1)[1] == FACTS
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(artifact["model.onnx"], options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load_model(tmp_path / "loaded.onnx").graph.node)
    assert kinds["Cast"] == 1 and not kinds["DequantizeLinear"], "of the photo's pixels: no weight is cast again"
    expected = with_rounded_weights(quantizer.args[0], CONTRACT)(PHOTOS)  # type: ignore[attr-defined]
    assert np.allclose(onnx_runtime.start(artifact, 1)[0](PHOTOS)[1], expected, atol=1e-4)


def test_no_trace_of_the_exporting_machine(quantize: Quantize) -> None:
    content = quantize("minmax", ())["model.onnx"]
    assert b"site-packages" not in content and b"handlens/nets" not in content
