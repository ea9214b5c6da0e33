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


SMALL = [
    ("mobilenet_v3_small", 64, {"channels": "bgr"}, {"width": 0.35}),
    ("mobilenet_v1", 64, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, {"width": 0.25, "padding": "tensorflow"}),
]


@pytest.mark.parametrize(("name", "px", "contract", "arguments"), SMALL)
def test_equal_to_the_network(
    name: str, px: int, contract: Any, arguments: Any, settled: Any, differences: Any, facts: str, untouched: Any
) -> None:
    net, preprocess = settled(name, px, contract, **arguments)
    before = copy.deepcopy(net.state_dict())
    artifact = untouched(lambda: litert.convert(net, preprocess, facts))
    assert set(artifact) == {"model.tflite"}
    data = artifact["model.tflite"]
    assert batch_is_free(data)
    for count in (1, 5):
        probabilities, logits = differences(runner(data), net, preprocess, count)
        assert probabilities < 1e-4 and logits < 3e-3
    assert metadata(data)["handlens"] == facts
    assert not net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_loaded_it_takes_one_photo_and_is_as_the_page_says(settled: Any, facts: str, page: Any) -> None:
    net, preprocess = settled("mobilenet_v1", 64, width=0.25)
    artifact = litert.convert(net, preprocess, facts)
    page("LiteRT", artifact, net, preprocess)
    interpreter = Interpreter(model_content=artifact["model.tflite"])
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


def test_an_unknown_operation_is_named(odd: Any, facts: str) -> None:
    with pytest.raises(HandlensError, match=r"litert cannot express aten\.special_bessel_j0.*MobileNetV1"):
        litert.convert(*odd, facts)


@pytest.mark.slow
def test_every_family(family: Any, differences: Any, facts: str) -> None:
    net, preprocess = family
    data = litert.convert(net, preprocess, facts)["model.tflite"]
    free = batch_is_free(data)
    assert free == (type(net).__name__ != "HybridVisionTransformer")  # that one takes a photo at a time
    found = [differences(runner(data), net, preprocess, count) for count in ((1, 5) if free else (1,))]
    print(f"{len(data)} bytes, differences {found}")
    assert max(probabilities for probabilities, _ in found) < 5e-4  # the gate: 1e-3
