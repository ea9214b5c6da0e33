"""LiteRT files on the real interpreter: equal to the network, any batch, the facts where others find them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("litert_torch")

from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.schema_py_generated import Model

from handlens.errors import HandlensError
from handlens.export import litert
from handlens.export.exchange import exchanged


def runner(data: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The signature of the file as a function of photos, any number at once."""
    interpreter = Interpreter(model_content=data, num_threads=1)
    run = interpreter.get_signature_runner()

    def infer(photos: np.ndarray) -> list[np.ndarray]:
        answers = run(photos=photos)
        return [answers["probabilities"], answers["logits"]]

    return infer


def batch_is_free(data: bytes) -> bool:
    interpreter = Interpreter(model_content=data)
    return all(
        x["shape_signature"][0] == -1 for x in interpreter.get_input_details() + interpreter.get_output_details()
    )


def metadata(data: bytes) -> dict[str, str]:
    """As anyone reads it, without handlens."""
    model = Model.GetRootAs(data)
    entries = [model.Metadata(index) for index in range(model.MetadataLength())]
    return {x.Name().decode(): bytes(model.Buffers(x.Buffer()).DataAsNumpy()).decode("latin-1") for x in entries}


@pytest.fixture(scope="module")
def small(settled: Any, other_weights: Any, facts: str) -> tuple[dict[str, bytes], Any, Any]:
    """A small MobileNetV3's file, the network and its contract. Not to be changed."""
    net, preprocess = settled("mobilenet_v3_small", 64, {"channels": "bgr"}, width=0.35)
    net = other_weights(net)  # none of whose biases is 0
    return litert.convert(net, preprocess, facts), net, preprocess


def equal(data: bytes, net: Any, preprocess: Any, facts: str, differences: Any) -> None:
    assert batch_is_free(data)
    for count in (1, 5):
        probabilities, logits = differences(runner(data), net, preprocess, count)
        assert probabilities < 1e-4 and logits < 3e-3
    assert metadata(data)["handlens"] == facts


def test_equal_to_the_network(small: Any, differences: Any, facts: str) -> None:
    artifact, net, preprocess = small
    assert set(artifact) == {"model.tflite"}
    equal(artifact["model.tflite"], net, preprocess, facts, differences)


def test_zeros_on_two_sides_and_nothing_else_touched(
    settled: Any, differences: Any, facts: str, untouched: Any
) -> None:
    contract = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    net, preprocess = settled("mobilenet_v1", 64, contract, width=0.25, padding="tensorflow")
    before = copy.deepcopy(net.state_dict())
    artifact = untouched(lambda: litert.convert(net, preprocess, facts))
    equal(artifact["model.tflite"], net, preprocess, facts, differences)
    assert not net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_other_weights_of_the_same_layers(small: Any, other_weights: Any, differences: Any, facts: str) -> None:
    artifact, net, preprocess = small
    other = other_weights(net)
    made = exchanged(artifact, net, other)
    assert made is not None
    equal(made["model.tflite"], other, preprocess, facts, differences)
    assert differences(runner(made["model.tflite"]), net, preprocess, 5)[0] > 1e-3


def test_loaded_it_takes_one_photo_and_is_as_the_page_says(small: Any, page: Any) -> None:
    page("LiteRT", *small)
    interpreter = Interpreter(model_content=small[0]["model.tflite"])
    (photos,) = interpreter.get_input_details()
    assert (photos["name"], photos["shape"].tolist(), photos["dtype"]) == ("photos", [1, 64, 64, 3], np.uint8)
    assert [output["name"] for output in interpreter.get_output_details()] == ["probabilities", "logits"]


def test_halves(settled: Any, halved: Any, differences: Any, facts: str) -> None:
    net, preprocess = settled("mobilenet_v2", 64, width=0.25)
    half = litert.convert(net, preprocess, facts, float16=True)["model.tflite"]
    assert len(half) < 0.65 * 4 * sum(parameter.numel() for parameter in net.parameters())
    assert differences(runner(half), net, preprocess, 5)[0] > 1e-4
    assert differences(runner(half), halved(net), preprocess, 5)[0] < 1e-4
    assert metadata(half)["handlens"] == facts
    assert [x["name"] for x in Interpreter(model_content=half).get_output_details()] == ["probabilities", "logits"]


def test_what_the_quantiser_has_made_is_read_as_arrays(settled: Any, facts: str) -> None:
    """Bytes would be written one by one, for minutes."""
    net, preprocess = settled("mobilenet_v2", 64, width=0.1)
    half = litert.convert(net, preprocess, facts, float16=True)["model.tflite"]
    buffers = litert.read(half).buffers
    assert {type(buffer.data) for buffer in buffers} == {np.ndarray, type(None)}


def test_an_unknown_operation_is_named(odd: Any, facts: str) -> None:
    with pytest.raises(HandlensError, match=r"litert cannot express aten\.special_bessel_j0.*MobileNetV1"):
        litert.convert(*odd, facts)


@pytest.mark.slow
def test_every_family(family: Any, other_weights: Any, differences: Any, facts: str) -> None:
    net, preprocess = other_weights(family[0]), family[1]
    artifact = litert.convert(net, preprocess, facts)
    data = artifact["model.tflite"]
    free = batch_is_free(data)
    assert free == (type(net).__name__ != "HybridVisionTransformer")  # that one takes a photo at a time
    found = [differences(runner(data), net, preprocess, count) for count in ((1, 5) if free else (1,))]
    print(f"{len(data)} bytes, differences {found}")
    assert max(probabilities for probabilities, _ in found) < 5e-4  # the gate: 1e-3
    other = other_weights(net)
    made = exchanged(artifact, net, other)
    print("weights exchanged" if made else "to be converted anew")
    if made is not None:
        assert differences(runner(made["model.tflite"]), other, preprocess, 1)[0] < 5e-4
