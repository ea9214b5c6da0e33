"""The float artifact that a ladder begins with is converted once."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from handlens import export
from handlens.export.job import Source
from handlens.run import onnx_runtime

pytest.importorskip("onnx")


def test_one_conversion_serves_all_weights_of_the_same_layers(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    real, converted = export.convert, []

    def convert(net: Any, *more: Any) -> dict[str, bytes]:
        converted.append(net)
        return real(net, *more)

    monkeypatch.setattr(export, "convert", convert)
    other = copy.deepcopy(source.folded)
    with torch.no_grad():
        other.classifier[-1].bias += torch.arange(source.folded.num_classes)
    plain, changed, again = source.float32("onnx"), source.float32("onnx", other), source.float32("onnx", source.folded)
    assert plain is again
    assert converted == [source.folded]
    px = source.reference.preprocess.image_px
    photo = np.random.default_rng(0).integers(0, 256, (1, px, px, 3), dtype=np.uint8)
    before, after = (onnx_runtime.predictor(artifact, 1)(photo)[1] for artifact in (plain, changed))
    assert np.allclose(after - before, np.arange(source.folded.num_classes), atol=1e-4)

    wider = copy.deepcopy(source.folded)
    wider.classifier[-1] = torch.nn.Linear(wider.classifier[-1].in_features, 7)
    source.float32("onnx", wider)
    assert converted == [source.folded, wider]
