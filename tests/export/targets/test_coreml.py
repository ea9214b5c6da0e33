"""Core ML packages, which cannot be run here: their interface, their metadata, and the network's weights in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

pytest.importorskip("coremltools")

from handlens.errors import HandlensError
from handlens.export import coreml

CLASSES = ["rose", "tulip", "blue sky", "花朵", 'a "quoted" <name>']
FACTS = json.dumps({"classes": CLASSES})
WEIGHTS = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


def read(artifact: Mapping[str, bytes], folder: Path) -> Any:
    """The package's description, by Apple's own reader."""
    from coremltools.models import MLModel

    for name, content in artifact.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return MLModel(str(folder / "model.mlpackage"), skip_model_load=True).get_spec()


def operations(spec: Any) -> list[str]:
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    return [operation.type for operation in block.operations if operation.type != "const"]


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_the_package(channels: str, settled: Any, untouched: Any, tmp_path: Path) -> None:
    net, preprocess = settled("mobilenet_v3_small", 64, {"channels": channels}, width=0.35)
    artifact = untouched(lambda: coreml.convert(net, preprocess, FACTS))
    spec = read(artifact, tmp_path)
    (photos,) = spec.description.input
    assert photos.name == "photos"
    assert (photos.type.imageType.width, photos.type.imageType.height) == (64, 64)
    kinds = {output.name: output.type.WhichOneof("Type") for output in spec.description.output}
    assert kinds == {"label": "stringType", "probabilities": "dictionaryType", "logits": "multiArrayType"}
    assert spec.description.predictedProbabilitiesName == "probabilities"
    assert spec.description.metadata.userDefined["handlens"] == FACTS
    assert all(name.encode() in spec.SerializeToString() for name in CLASSES)
    found = operations(spec)
    assert ("reverse" in found) == (channels == "bgr")
    layers = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert found.count("conv") + found.count("linear") == len(layers)
    for layer in layers:
        assert layer.weight.numel() < 32 or layer.weight.detach().numpy().tobytes() in artifact[WEIGHTS]


@pytest.mark.parametrize("float16", [False, True])
def test_each_output_has_its_own_name(float16: bool, settled: Any, tmp_path: Path) -> None:
    """The probabilities come from the softmax, by way of casts at most, and the logits go into it."""
    net, preprocess = settled("mobilenet_v1", 64, width=0.1)
    spec = read(coreml.convert(net, preprocess, FACTS, float16), tmp_path)
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    made = {output.name: operation for operation in block.operations for output in operation.outputs}

    def given(operation: Any) -> Any:
        """The operation that gives what this one works on."""
        name = next(iter(operation.inputs["x" if "x" in operation.inputs else "probabilities"].arguments)).name
        return given(made[name]) if made[name].type == "cast" else made[name]

    assert (made["probabilities"].type, made["label"].type) == ("classify", "classify")
    softmax = given(made["probabilities"])
    logits = given(made["logits"]) if made["logits"].type == "cast" else made["logits"]
    assert softmax.type == "softmax"
    assert logits.type == "linear" and given(softmax) == logits


def test_halves_and_as_the_page_says(settled: Any, page: Any) -> None:
    net, preprocess = settled("mobilenet_v2", 64, width=0.25)
    artifact = coreml.convert(net, preprocess, FACTS, float16=True)
    assert page("Core ML", artifact, net, preprocess) == json.loads(FACTS)
    half = artifact[WEIGHTS]
    assert len(half) < 0.55 * 4 * sum(parameter.numel() for parameter in net.parameters())
    assert net.classifier[-1].weight.detach().half().numpy().tobytes() in half


def test_an_unknown_operation_is_named(odd: Any) -> None:
    with pytest.raises(HandlensError, match=r"coreml cannot express special_bessel_j0.*MobileNetV1"):
        coreml.convert(*odd, FACTS)


@pytest.mark.slow
def test_every_family(family: Any, tmp_path: Path) -> None:
    artifact = coreml.convert(*family, FACTS)
    print(f"{len(artifact[WEIGHTS])} bytes, {len(operations(read(artifact, tmp_path)))} operations")
