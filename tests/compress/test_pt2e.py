"""What ExecuTorch's files round, and where: after ReLU6, as after ReLU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from handlens import nets
from handlens.compress import executorch as quantising
from handlens.export import executorch
from handlens.nets.fold import fold_batch_norm
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Preprocess

pytest.importorskip("executorch.exir")
CONTRACT = Preprocess(image_px=32, resize_px=36)


@pytest.fixture(scope="module")
def converted() -> Any:
    """The graph of a MobileNetV1 with integers, features.2 in float; before it is lowered."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    net = fold_batch_norm(nets.create("mobilenet_v1", 5, width=0.25))
    program = executorch.export(FromPixels(net, CONTRACT).eval(), CONTRACT).module()
    prepared = prepare_pt2e(program, quantising._where("minmax", ("features.2",)))
    photos = np.random.default_rng(0).integers(0, 256, (executorch.LARGEST_BATCH, 32, 32, 3), dtype=np.uint8)
    prepared(torch.from_numpy(photos))
    return convert_pt2e(prepared).graph


@pytest.mark.slow
def test_a_convolution_and_its_relu6_are_rounded_as_one(converted: Any) -> None:
    clips = [node for node in converted.nodes if "hardtanh" in str(node.target)]
    assert len(clips) == 27
    kept = 0
    for clip in clips:
        assert "conv2d" in str(clip.args[0].target), "nothing is rounded between them"
        (reader,) = clip.users
        rounded = "dequantize_per_channel" in str(clip.args[0].args[1].target)
        kept += not rounded
        if rounded:
            assert "dequantize_per_tensor" in str(clip.args[0].args[0].target)
            assert "quantize_per_tensor" in str(reader.target)
            scale, zero = reader.args[1:3]
            assert zero == -128 and scale <= 6 / 255 + 1e-6, "the 256 levels are those of 0 to 6"
    assert kept == 2
