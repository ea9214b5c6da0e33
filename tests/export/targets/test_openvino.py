"""OpenVINO files on the real runtime: equal to the network, any batch, the facts where others find them."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("openvino")

import openvino as ov

from handlens.errors import HandlensError
from handlens.export.exchange import exchanged
from handlens.export.openvino import convert
from handlens.run import openvino_runtime


def load(artifact: Mapping[str, bytes]) -> Any:
    return ov.Core().read_model(artifact["model.xml"], artifact["model.bin"])


def runner(artifact: Mapping[str, bytes]) -> Callable[[np.ndarray], list[np.ndarray]]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = ov.compile_model(load(artifact), "CPU", settings)

    def infer(photos: np.ndarray) -> list[np.ndarray]:
        answers = compiled({"photos": photos})
        return [answers["probabilities"].copy(), answers["logits"].copy()]

    return infer


SMALL = [
    ("mobilenet_v1", 64, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, {"width": 0.25, "padding": "tensorflow"}),
    ("vit_ti_32", 64, {"normalisation": "z-score"}, {"image_px": 64}),
]


@pytest.fixture(scope="module")
def small(settled: Any, other_weights: Any, facts: str) -> tuple[dict[str, bytes], Any, Any]:
    """A small MobileNetV3's files, the network and its contract. Not to be changed."""
    net, preprocess = settled("mobilenet_v3_small", 64, {"channels": "bgr"}, width=0.35)
    net = other_weights(net)  # none of whose biases is 0
    return convert(net, preprocess, facts), net, preprocess


def equal(artifact: Mapping[str, bytes], net: Any, preprocess: Any, facts: str, differences: Any) -> None:
    assert set(artifact) == {"model.xml", "model.bin"}
    for count in (1, 5):
        probabilities, logits = differences(runner(artifact), net, preprocess, count)
        assert probabilities < 1e-4 and logits < 3e-3
    model = load(artifact)
    assert model.get_rt_info(["handlens"]).value == facts
    element = ElementTree.fromstring(artifact["model.xml"]).find("rt_info/handlens")
    assert element is not None and element.get("value") == facts
    assert [(x.get_any_name(), x.get_partial_shape().to_string()) for x in model.inputs] == [
        ("photos", f"[?,{preprocess.image_px},{preprocess.image_px},3]")
    ]
    assert [x.get_any_name() for x in model.outputs] == ["probabilities", "logits"]


def test_equal_to_the_network(small: Any, differences: Any, facts: str) -> None:
    equal(*small, facts, differences)


@pytest.mark.parametrize("given", SMALL)
def test_of_other_kinds_and_nothing_else_touched(
    given: Any, settled: Any, differences: Any, facts: str, untouched: Any
) -> None:
    name, px, contract, arguments = given
    net, preprocess = settled(name, px, contract, **arguments)
    before = copy.deepcopy(net.state_dict())
    artifact = untouched(lambda: convert(net, preprocess, facts))
    equal(artifact, net, preprocess, facts, differences)
    assert not net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_other_weights_of_the_same_layers(small: Any, other_weights: Any, differences: Any, facts: str) -> None:
    artifact, net, preprocess = small
    other = other_weights(net)
    made = exchanged(artifact, net, other)
    assert made is not None
    equal(made, other, preprocess, facts, differences)
    assert differences(runner(made), net, preprocess, 5)[0] > 1e-3


def test_what_meets_eight_bit_weights_is_not_rounded_by_who_does_not_ask_for_it(small: Any) -> None:
    compiled = ov.compile_model(load(small[0]), "CPU")
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


def test_as_the_page_says(small: Any, page: Any) -> None:
    page("OpenVINO", *small)


def test_halves(settled: Any, differences: Any, facts: str) -> None:
    net, preprocess = settled("vit_ti_32", 64, {"normalisation": "z-score"}, image_px=64)
    half = convert(net, preprocess, facts, float16=True)
    assert len(half["model.bin"]) < 0.55 * 4 * sum(parameter.numel() for parameter in net.parameters())
    assert 1e-6 < differences(runner(half), net, preprocess, 5)[0] < 1e-2


def test_bfloat16_is_computed_where_the_processor_does_and_float32_elsewhere(
    small: Any, differences: Any, facts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By handlens, which reads what the file asks for; never for a file that asks for nothing."""
    _, net, preprocess = small
    asks = convert(net, preprocess, facts, bfloat16=True)
    assert asks["model.bin"] == small[0]["model.bin"]  # slower to compute with as halves
    for start in (openvino_runtime.start, openvino_runtime.start_shared):
        assert differences(start(small[0])[0], net, preprocess, 5)[0] < 1e-4
    monkeypatch.setattr(openvino_runtime, "computes_bfloat16", lambda: False)
    infer, told = openvino_runtime.start(asks)
    assert differences(infer, net, preprocess, 5)[0] < 1e-4 and told == facts
    monkeypatch.undo()
    if not openvino_runtime.computes_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    for start in (openvino_runtime.start, openvino_runtime.start_shared):
        assert 1e-4 < differences(start(asks)[0], net, preprocess, 5)[0] < 0.1


def test_an_unknown_operation_is_named(odd: Any, facts: str) -> None:
    with pytest.raises(HandlensError, match=r"openvino cannot express aten\.special_bessel_j0.*MobileNetV1"):
        convert(*odd, facts)


@pytest.mark.slow
def test_every_family(family: Any, other_weights: Any, differences: Any, facts: str) -> None:
    net, preprocess = other_weights(family[0]), family[1]
    artifact = convert(net, preprocess, facts)
    found = [differences(runner(artifact), net, preprocess, count) for count in (1, 5)]
    print(f"{len(artifact['model.bin'])} bytes, differences {found}")
    assert max(probabilities for probabilities, _ in found) < 1e-4
    other = other_weights(net)
    made = exchanged(artifact, net, other)
    print("weights exchanged" if made else "to be converted anew")
    if made is not None:
        assert differences(runner(made), other, preprocess, 5)[0] < 1e-4
