"""What is done to the pixels before the network stays float in an INT8 file, whatever the normalisation."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from handlens import bundle, export
from handlens.compress.ladder import TARGETS
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Normalisation, Preprocess

NEEDS = {"onnx": "onnx", "litert": "ai_edge_quantizer", "executorch": "executorch.exir", "openvino": "nncf"}
NOISE = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
PHOTOS = np.concatenate([120 + NOISE // 32, NOISE])  # within a few grey levels the first, whose own range is narrow


@pytest.mark.parametrize("normalisation", [pytest.param("fixed", marks=pytest.mark.slow), "z-score"])
@pytest.mark.parametrize(
    "to", [to if to in ("onnx", "openvino") else pytest.param(to, marks=pytest.mark.slow) for to in TARGETS]
)
def test_pixels_are_brought_to_their_range_in_float(to: str, normalisation: Normalisation, shaken: Any) -> None:
    pytest.importorskip(NEEDS[to])
    net = export.folded(shaken("mobilenet_v1", width=0.25))
    contract = Preprocess(image_px=32, resize_px=36, normalisation=normalisation)
    facts = bundle.facts("mobilenet_v1", ("a", "b", "c", "d", "e"), contract)
    features = [name for name, _ in net.named_children() if name != "classifier"]
    quantise = importlib.import_module(f"handlens.compress.{to}").quantizer(net, contract, facts, PHOTOS)
    got = export.runner(to, 1)(quantise("minmax", features))(PHOTOS)[1]
    with torch.inference_mode():
        expected = FromPixels(net, contract).eval()(torch.from_numpy(PHOTOS))[1].numpy()
    errors, spread = np.abs(got - expected), np.abs(expected - expected.mean(0))
    assert errors[:4].max() < 0.1 * spread[:4].max() and errors[4:].max() < 0.1 * spread[4:].max()
