"""The INT8 form of a LiteRT file whose weights alone are in eight bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from handlens import bundle, export
from handlens.compress import litert as quantising
from handlens.preprocess import Preprocess

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")

CONTRACT = Preprocess(image_px=32, resize_px=36)
FACTS = bundle.facts("mobilenet_v3_small", ("a", "b", "c", "d", "e"), CONTRACT)
PHOTOS = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet_v1_x0_25_g8", "resnet18"])
def test_a_padded_max_pool_in_integers(name: str, shaken: Any) -> None:
    """LiteRT pads it with minus infinity, which is in no range: with that XNNPACK ended the process."""
    from handlens.run import litert_runtime

    net = export.folded(shaken(name))
    contract = Preprocess(image_px=64, resize_px=72)
    photos = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    facts = bundle.facts(name, tuple("abcde"), contract)
    plain = export.convert(net, contract, "litert", facts)
    artifact = quantising.quantizer(net, contract, facts, photos, plain=lambda: plain)("minmax", ())
    expected, found = (litert_runtime.start(each, 1)[0](photos)[1] for each in (plain, artifact))
    spread = expected.std(0).mean()
    assert np.abs(found - expected).mean() < 0.5 * spread


@pytest.mark.slow
def test_weights_alone_are_rounded_and_nothing_else(shaken: Any, with_rounded_weights: Any) -> None:
    from handlens.run import litert_runtime

    net = export.folded(shaken("mobilenet_v3_small", width=0.25))
    plain = export.convert(net, CONTRACT, "litert", FACTS)
    artifact = quantising.quantizer(net, CONTRACT, FACTS, PHOTOS, plain=lambda: plain)(None, ())
    assert litert_runtime.embedded(artifact) == FACTS
    assert len(artifact["model.tflite"]) < 0.5 * len(plain["model.tflite"])  # so small a network is names by half
    kinds = {detail["dtype"] for detail in quantising._interpreter(artifact["model.tflite"], 1).get_tensor_details()}
    assert np.int8 in kinds
    expected = with_rounded_weights(net, CONTRACT)(PHOTOS)
    assert np.allclose(litert_runtime.start(artifact, 1)[0](PHOTOS)[1], expected, atol=1e-4)
