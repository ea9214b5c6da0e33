"""ONNX files on onnxruntime: equal to the network, any batch, the facts where others find them; weights exchanged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from handlens.errors import HandlensError
from handlens.export.exchange import exchanged
from handlens.export.onnx import convert
from handlens.run.onnx_runtime import start

SMALL = [
    ("mobilenet_v3_small", 64, {"channels": "bgr"}, {"width": 0.35}),
    ("mobilenet_v1", 64, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, {"width": 0.25, "padding": "tensorflow"}),
    pytest.param(("vit_ti_32", 64, {"normalisation": "z-score"}, {"image_px": 64}), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def plain(settled: Any, facts: str) -> Any:
    """A MobileNet V1, its contract and its artifact. Not to be changed."""
    net, preprocess = settled("mobilenet_v1", 64, width=0.25)
    return net, preprocess, convert(net, preprocess, facts)


@pytest.mark.parametrize("small", SMALL)
def test_equal_to_the_network(small: Any, settled: Any, differences: Any, facts: str, untouched: Any) -> None:
    import onnx

    name, px, contract, arguments = small
    net, preprocess = settled(name, px, contract, **arguments)
    before = copy.deepcopy(net.state_dict())
    artifact = untouched(lambda: convert(net, preprocess, facts))
    assert set(artifact) == {"model.onnx"}
    for count in (1, 5):
        probabilities, logits = differences(start(artifact, 1)[0], net, preprocess, count)
        assert probabilities < 1e-4 and logits < 3e-3
    assert start(artifact, 1)[1] == facts
    model = onnx.load_model_from_string(artifact["model.onnx"])
    assert [value.name for value in model.graph.input] == ["photos"]
    assert [value.name for value in model.graph.output] == ["probabilities", "logits"]
    assert not any(node.metadata_props for node in model.graph.node)
    assert not net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_as_the_page_says(plain: Any, page: Any) -> None:
    net, preprocess, artifact = plain
    page("ONNX", artifact, net, preprocess)


@pytest.mark.slow
def test_halves(settled: Any, differences: Any, facts: str) -> None:
    net, preprocess = settled("vit_ti_32", 64, {"normalisation": "z-score"}, image_px=64)
    half = convert(net, preprocess, facts, float16=True)
    assert len(half["model.onnx"]) < 0.55 * 4 * sum(parameter.numel() for parameter in net.parameters())
    assert 1e-6 < differences(start(half, 1)[0], net, preprocess, 5)[0] < 1e-2


def test_an_unknown_operation_is_named(odd: Any, facts: str) -> None:
    with pytest.raises(HandlensError, match=r"onnx cannot express prims\.bessel_j0, an operation of MobileNetV1"):
        convert(*odd, facts)


def test_other_weights_of_the_same_layers(settled: Any, other_weights: Any, differences: Any, facts: str) -> None:
    net, preprocess = settled("mobilenet_v3_small", 64, {"channels": "bgr"}, width=0.35)
    net = other_weights(net)  # none of whose biases is 0
    artifact, other = convert(net, preprocess, facts), other_weights(net)
    made = exchanged(artifact, net, other)
    assert made is not None
    assert differences(start(made, 1)[0], other, preprocess, 5)[0] < 1e-4
    assert differences(start(made, 1)[0], net, preprocess, 5)[0] > 1e-3
    assert differences(start(artifact, 1)[0], net, preprocess, 5)[0] < 1e-4  # which is as it was
    assert start(made, 1)[1] == facts


def test_weights_are_not_exchanged_where_the_file_does_not_hold_them(
    settled: Any, other_weights: Any, plain: Any
) -> None:
    net, _, artifact = plain
    wider, _ = settled("mobilenet_v1", 64, width=0.5)
    other_padding, _ = settled("mobilenet_v1", 64, width=0.25, padding="tensorflow")
    assert exchanged(artifact, net, wider) is None
    assert exchanged(artifact, net, other_padding) is None
    assert exchanged(artifact, other_weights(net), net) is None  # the file is not that of the old one
    warmer = copy.deepcopy(net)
    warmer.temperature = 2.0
    assert exchanged(artifact, net, warmer) is None


@pytest.mark.slow
def test_weights_that_the_file_leaves_out_are_not_exchanged(settled: Any, other_weights: Any, facts: str) -> None:
    net, preprocess = settled("mobilenet_v1", 64, width=0.25)
    empty = copy.deepcopy(net)
    with torch.no_grad():
        for name, value in empty.named_parameters():
            if name.endswith("bias"):
                value.zero_()  # a convolution without a bias is the same
    assert exchanged(convert(empty, preprocess, facts), empty, other_weights(net)) is None


@pytest.mark.slow
def test_every_family(family: Any, other_weights: Any, differences: Any, facts: str) -> None:
    net, preprocess = other_weights(family[0]), family[1]
    artifact = convert(net, preprocess, facts)
    found = [differences(start(artifact, 1)[0], net, preprocess, count) for count in (1, 5)]
    print(f"{len(artifact['model.onnx'])} bytes, differences {found}")
    assert max(probabilities for probabilities, _ in found) < 1e-4
    other = other_weights(net)
    made = exchanged(artifact, net, other)
    print("weights exchanged" if made else "to be converted anew")
    if made is not None:
        assert differences(start(made, 1)[0], other, preprocess, 5)[0] < 1e-4
