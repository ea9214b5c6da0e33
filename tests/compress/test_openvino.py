"""The INT8 form of an OpenVINO file: how its weights are stored, and what stays float."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from handlens import bundle
from handlens.compress.observe import Observer, Quantize
from handlens.nets import Net
from handlens.nets.fold import fold_batch_norm
from handlens.preprocess import Preprocess

pytest.importorskip("nncf", reason="nncf is not installed")

CONTRACT = Preprocess(image_px=32, resize_px=36)
FACTS = bundle.facts("mobilenet_v3_small", ("a", "b", "c", "d", "e"), CONTRACT)
PHOTOS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def net(shaken: Any) -> Net:
    net: Net = fold_batch_norm(shaken("mobilenet_v3_small", width=0.25))
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.uniform_(module.bias, 0.1, 0.2)  # NNCF knows squeeze-and-excite by its biases
    return net


@pytest.fixture(scope="module")
def quantize(net: Net) -> Quantize:
    from handlens.compress import openvino as quantising

    return quantising.quantizer(net, CONTRACT, FACTS, PHOTOS)


def floats(artifact: dict[str, bytes]) -> list[tuple[int, ...]]:
    """The shapes of the weights that are stored in float32, but for those of depthwise convolutions."""
    import openvino

    model = openvino.Core().read_model(artifact["model.xml"], artifact["model.bin"])
    constants = [op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]
    shapes = [tuple(op.shape) for op in constants if op.get_element_type() == openvino.Type.f32]
    return [shape for shape in shapes if len(shape) in (2, 4) and min(shape[:2]) > 1]


def test_all_weights_are_stored_in_eight_bits(quantize: Quantize) -> None:
    """Those of squeeze-and-excite too, which compute in float."""
    from handlens.run import openvino_runtime

    artifact = quantize("minmax", ())
    assert floats(artifact) == []
    assert openvino_runtime.start(artifact, 1)[1] == FACTS
    probabilities, _ = openvino_runtime.start(artifact, 1)[0](PHOTOS)
    assert np.isfinite(probabilities).all() and np.allclose(probabilities.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("observer", ["minmax", None])
def test_what_meets_the_weights_is_not_rounded_by_who_does_not_ask_for_it(
    observer: Observer | None, quantize: Quantize
) -> None:
    import openvino

    artifact = quantize(observer, ())
    model = openvino.Core().read_model(artifact["model.xml"], artifact["model.bin"])
    assert openvino.compile_model(model, "CPU").get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


@pytest.mark.parametrize("observer", ["minmax", None])
def test_several_threads_get_the_answers_of_one(observer: Observer | None, quantize: Quantize) -> None:
    """OpenVINO's own way of serving several, more streams than one, answers these files otherwise."""
    from handlens.run import openvino_runtime

    artifact = quantize(observer, ())
    alone, shared = openvino_runtime.start(artifact, 1)[0], openvino_runtime.start_shared(artifact)[0]
    batches = [PHOTOS[first : first + size] for size in (1, 3, 4) for first in (0, 2, 4)]
    with ThreadPoolExecutor(3) as pool:
        for batch, (probabilities, logits) in zip(batches, pool.map(shared, batches), strict=True):
            assert np.allclose(probabilities, alone(batch)[0], atol=1e-6)
            assert np.allclose(logits, alone(batch)[1], atol=1e-5)


def test_layers_that_are_kept_stay_float(quantize: Quantize) -> None:
    kept = floats(quantize("minmax", ("features.1",)))
    assert kept  # the first block's squeeze-and-excite and projection
    assert len(kept) < 5


def test_weights_alone_are_rounded_and_nothing_else(net: Net, quantize: Quantize, with_rounded_weights: Any) -> None:
    from handlens.run import openvino_runtime

    artifact = quantize(None, ())
    assert floats(artifact) == [] and openvino_runtime.start(artifact, 1)[1] == FACTS
    expected = with_rounded_weights(net, CONTRACT)(PHOTOS)
    assert np.allclose(openvino_runtime.start(artifact, 1)[0](PHOTOS)[1], expected, atol=1e-4)


def test_linear_layers_that_are_kept_stay_float(net: Net, quantize: Quantize) -> None:
    layers = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Linear)]
    shapes = [tuple(net.get_submodule(name).weight.shape) for name in layers]
    assert floats(quantize("minmax", layers)) == shapes
    assert floats(quantize(None, layers[:1])) == shapes[:1]
