"""ExecuTorch files on the real runtime: equal to the network, batches up to the bound, in one piece, facts inside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("executorch.exir")

from handlens import export
from handlens.errors import HandlensError
from handlens.export import executorch


@pytest.fixture(scope="module")
def load() -> Callable[[bytes], Any]:
    from executorch.runtime import Runtime

    return lambda data: Runtime.get().load_program(data)


def runner(program: Any) -> Callable[[np.ndarray], list[np.ndarray]]:
    def infer(photos: np.ndarray) -> list[np.ndarray]:
        forward = program.load_method("forward")  # once; the program holds the file, and a method alone does not
        return [answers.clone().numpy() for answers in forward.execute([torch.from_numpy(photos)])]

    return infer


def pieces(data: bytes) -> tuple[int, list[str]]:
    """How many pieces XNNPACK runs, and the names of the operations that it does not run."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    (plan,) = (x for x in deserialize_pte_binary(data).program.execution_plan if x.name == "forward")
    calls = [step.instr_args for chain in plan.chains for step in chain.instructions]
    kernels = [plan.operators[call.op_index].name for call in calls if type(call).__name__ == "KernelCall"]
    return len(plan.delegates), kernels


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return {}


@pytest.fixture
def small(settled: Any, facts: str, untouched: Any, made: dict[str, bytes]) -> tuple[dict[str, bytes], Any, Any]:
    """A small MobileNetV3's file, made for the first test that asks; the network and its contract."""
    net, preprocess = settled("mobilenet_v3_small", 32, width=0.35)
    if not made:
        before = copy.deepcopy(net.state_dict())
        made |= untouched(lambda: executorch.convert(net, preprocess, facts))
        assert not net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    return made, net, preprocess


@pytest.fixture(scope="module")
def v1(settled: Any, facts: str) -> tuple[dict[str, bytes], Any, Any]:
    """A small MobileNetV1's, with zeros on two sides only, and pixels between -1 and 1 in another order."""
    contract = {"channels": "bgr", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    net, preprocess = settled("mobilenet_v1", 32, contract, width=0.25, padding="tensorflow")
    return executorch.convert(net, preprocess, facts), net, preprocess


@pytest.mark.parametrize("name", ["small", pytest.param("v1", marks=pytest.mark.slow)])  # half a minute each
def test_equal_to_the_network(
    name: str, request: pytest.FixtureRequest, differences: Any, facts: str, load: Any
) -> None:
    artifact, net, preprocess = request.getfixturevalue(name)
    assert set(artifact) == {"model.pte"}
    program = load(artifact["model.pte"])
    for count in (1, 5, 16):
        probabilities, logits = differences(runner(program), net, preprocess, count)
        assert probabilities < 1e-4 and logits < 3e-3
    assert program.load_method("handlens").execute([])[0] == facts


def test_as_the_page_says(small: Any, page: Any) -> None:
    page("ExecuTorch", *small)


def test_in_one_piece(small: Any) -> None:
    count, kernels = pieces(small[0]["model.pte"])
    print(f"XNNPACK runs {count} piece(s); other operations: {kernels}")
    assert (count, set(kernels)) == (1, {"dim_order_ops::_to_dim_order_copy"})  # such as uint8 to float32


def test_the_largest_batch(small: Any, load: Any) -> None:
    program = load(small[0]["model.pte"])
    run = runner(program)
    largest = program.metadata("forward").input_tensor_meta(0).sizes()[0]
    assert largest in (16, 17)
    assert run(np.zeros((largest, 32, 32, 3), np.uint8))[0].shape == (largest, 5)
    with pytest.raises(RuntimeError):
        run(np.zeros((largest + 1, 32, 32, 3), np.uint8))


def test_halves_are_refused(settled: Any, facts: str) -> None:
    with pytest.raises(HandlensError, match="executorch stores the weights of convolutions in float32 only"):
        export.convert(*settled("mobilenet_v2", 32, width=0.25), "executorch", facts, "float16")


def test_an_unknown_operation_is_named(odd: Any, facts: str) -> None:
    with pytest.raises(HandlensError, match=r"executorch cannot express aten\.special_bessel_j0.*MobileNetV1"):
        executorch.convert(*odd, facts)


@pytest.mark.slow
def test_every_family(family: Any, differences: Any, facts: str, load: Any) -> None:
    net, preprocess = family
    data = executorch.convert(net, preprocess, facts)["model.pte"]
    found = [differences(runner(load(data)), net, preprocess, count) for count in (1, 5)]
    print(f"{len(data)} bytes, differences {found}, pieces {pieces(data)}")
    assert max(probabilities for probabilities, _ in found) < 5e-4  # the gate: 1e-3
