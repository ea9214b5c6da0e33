"""What the tests of the targets share: small networks with lively answers, and photos for them."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from handlens import export, nets
from handlens.nets.layers import StochasticDepth
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Preprocess

FACTS = json.dumps({"classes": ["rose", "tulip"], "net": "a", "note": 'quotes " and \\ and <xml> &amp; '})
Infer = Callable[[np.ndarray], Any]
Settled = tuple[nets.Net, Preprocess]


def photos(count: int, px: int, seed: int = 0) -> np.ndarray:
    """uint8 (count, px, px, 3): blurred colours with grain."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    colours = np.stack([np.asarray(Image.fromarray(photo).resize((px, px))) for photo in coarse])
    return np.clip(colours + draw.normal(0, 20, colours.shape), 0, 255).astype(np.uint8)


@torch.no_grad()
def settle(net: nets.Net, preprocess: Preprocess) -> nets.Net:
    """Draw the weights so that photos get different answers, with batch-norm statistics unlike their defaults."""
    draw = torch.Generator().manual_seed(0)
    last = net.classifier[-1]
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module is not last:
            nn.init.kaiming_normal_(module.weight, generator=draw)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=draw)
            module.bias.normal_(0, 0.2, generator=draw)
            module.momentum = 1.0  # the statistics of these photos
        elif isinstance(module, (nn.Dropout, StochasticDepth)):
            module.p = 0.0
    images = torch.from_numpy(preprocess.normalise(photos(12, preprocess.image_px, seed=7)))
    net.train()(images)
    logits = net.eval()(images)
    spread = (logits - logits.mean(0)).std() / 1.5
    last.weight /= spread
    last.bias.copy_((last.bias - logits.mean(0)) / spread)
    return net


@pytest.fixture(scope="session")
def settled() -> Callable[..., Settled]:
    """settled(name, px, contract, **arguments): a small network, batch norm folded, and its pixel contract.

    Neither is to be changed.
    """
    made: dict[str, Settled] = {}

    def make(name: str, px: int, contract: dict[str, Any] | None = None, **arguments: Any) -> Settled:
        key = repr((name, px, contract, arguments))
        if key not in made:
            preprocess = Preprocess(**{"image_px": px, "resize_px": px, **(contract or {})})
            torch.manual_seed(0)
            made[key] = export.folded(settle(nets.create(name, 5, **arguments), preprocess)), preprocess
        return made[key]

    return make


FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {  # one small network of each kind, with its photos' size
    "mobilenet_v1": (64, {"width": 0.25}),
    "mobilenet_v1 tensorflow": (64, {"width": 0.25, "padding": "tensorflow"}),
    "mobilenet_v2": (64, {"width": 0.25}),
    "mobilenet_v3_small": (64, {"width": 0.35}),
    "mobilenet_v3_large": (64, {"width": 0.25}),
    "mobilenet_v3_large_minimalistic": (64, {"width": 0.25}),
    "xception": (96, {}),
    "shufflenet_v1_x0_25_g8": (64, {}),
    "shufflenet_v2_x0_5": (64, {}),
    "efficientnet_b0": (64, {}),
    "efficientnet_lite0": (64, {}),
    "resnet18": (64, {}),
    "resnet50": (64, {}),
    "resnet20": (32, {}),
    "plain20": (32, {}),
    "vit_ti_16": (64, {"image_px": 64}),
    "vit_ti_16 resampled": (64, {"image_px": 48}),
    "vit_base_r50_s16_224": (64, {"image_px": 64}),
    "alexnet": (67, {}),
    "alexnet_torchvision": (64, {}),
    "vgg11_lrn": (64, {}),
    "vgg11_bn": (64, {}),
    "googlenet": (64, {}),
    "googlenet_torchvision": (64, {}),
    "inception_v3": (96, {}),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Settled:
    """Each of FAMILIES in turn; not kept, for some are large."""
    px, arguments = FAMILIES[request.param]
    preprocess = Preprocess(image_px=px, resize_px=px)
    torch.manual_seed(0)
    net = nets.create(request.param.partition(" ")[0], 5, **arguments)
    return export.folded(settle(net, preprocess)), preprocess


@pytest.fixture(scope="session")
def other_weights() -> Callable[[nets.Net], nets.Net]:
    """other_weights(net): a copy whose every weight is a little different, and not 0."""

    def make(net: nets.Net) -> nets.Net:
        other = copy.deepcopy(net)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for value in other.parameters():
                value += (0.1 * value.abs().mean() + 1e-3) * torch.randn(value.shape, generator=draw)
        return other

    return make


@pytest.fixture(scope="session")
def facts() -> str:
    """A string with characters that formats have to escape."""
    return FACTS


@pytest.fixture(scope="session")
def differences() -> Callable[..., tuple[float, ...]]:
    """differences(infer, net, preprocess, count): greatest of the probabilities, and of the logits as a part of
    the largest logit, against torch."""

    def compare(infer: Infer, net: nets.Net, preprocess: Preprocess, count: int) -> tuple[float, ...]:
        images = photos(count, preprocess.image_px)
        with torch.no_grad():
            expected = FromPixels(net, preprocess).eval()(torch.from_numpy(images))
        got = infer(images)
        assert [answers.shape for answers in got] == [tuple(answers.shape) for answers in expected]
        assert all(answers.dtype == np.float32 for answers in got)
        assert float(np.abs(got[1] - got[1][:1]).max()) > 0.05 or count == 1  # photos are told apart
        away = [float(np.abs(a - b.numpy()).max()) for a, b in zip(got, expected, strict=True)]
        return away[0], away[1] / max(1.0, float(expected[1].abs().max()))

    return compare


@pytest.fixture(scope="session")
def halved() -> Callable[[nets.Net], nets.Net]:
    """halved(net): a copy with the weights of convolutions and linear layers rounded to float16."""

    def make(net: nets.Net) -> nets.Net:
        net = copy.deepcopy(net)
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.data = module.weight.data.half().float()
        return net

    return make


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, differences: Any) -> Callable[..., Any]:
    """page(heading, artifact, net, preprocess): runs what docs/export.md shows there, in a folder with the artifact.

    Compares the answers with the network's, and gives the facts that it read.
    """

    def run(heading: str, artifact: Mapping[str, bytes], net: nets.Net, preprocess: Preprocess) -> Any:
        text = (Path(__file__).parents[3] / "docs" / "export.md").read_text("utf-8")
        code = text.partition(f"## {heading}\n")[2].partition("```python\n")[2].partition("```")[0]
        for name, content in artifact.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}

        def infer(images: np.ndarray) -> list[np.ndarray]:
            names["photos"] = images
            exec(code, names)
            return [np.asarray(names["probabilities"]), np.asarray(names["logits"])]

        if "photos" in code:
            assert differences(infer, net, preprocess, 3)[0] < 1e-4
        else:
            exec(code, names)
        return names["facts"]

    return run


class Odd(nn.Module):
    """An operation that no runtime for phones has."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(maps)


@pytest.fixture(scope="session")
def odd(settled: Any) -> Settled:
    """A network with an operation that the targets cannot express."""
    net, preprocess = settled("mobilenet_v1", 64, width=0.25)
    net = copy.deepcopy(net)
    net.classifier.insert(0, Odd())
    return net, preprocess


def _state() -> dict[str, Any]:
    return {
        "logging": (logging.root.level, list(logging.root.handlers), logging.getLogger("torch").level),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),  # type: ignore[union-attr,call-overload]
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
    }


@pytest.fixture
def untouched(capfd: pytest.CaptureFixture[str]) -> Callable[[Callable[[], Any]], Any]:
    """untouched(run): calls it, and fails if it prints, or changes what others in the process rely on."""

    def call(run: Callable[[], Any]) -> Any:
        before = _state()
        capfd.readouterr()
        result = run()
        printed = capfd.readouterr()
        assert (printed.out, printed.err) == ("", "")
        after = _state()
        assert {key: after[key] == before[key] for key in before} == dict.fromkeys(before, True)
        return result

    return call
