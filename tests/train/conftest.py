"""What the tests of training share: a small net's weight file, quick settings, runs that are made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from handlens.nets import Net
from handlens.train import Run, logs

QUICK: dict[str, Any] = {"image_px": 32, "batch_size": 8, "epochs": 2, "precision": "32-true"}


@pytest.fixture(scope="session")
def quick() -> dict[str, Any]:
    """Settings of `handlens.fit` that make a run on the tiny photos take a second."""
    return dict(QUICK)


@pytest.fixture(autouse=True)
def _one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The curves of the first run stand for those of all others: drawing them takes as long as a tiny epoch."""
    monkeypatch.setattr(logs, "curves", _curves)


_REAL, _DRAWN = logs.curves, list[bytes]()


def _curves(log: logs.Log, kept_epoch: int) -> bytes:
    if not _DRAWN:
        _DRAWN.append(_REAL(log, kept_epoch))
    return _DRAWN[0]


@pytest.fixture(scope="session")
def lively() -> Callable[[Net], Net]:
    """Fits a random network's statistics to colourful noise: its features tell colours apart, as trained ones would."""
    import torch

    def fitted(net: Net) -> Net:
        random = torch.Generator().manual_seed(0)
        images = torch.randn(32, 3, 1, 1, generator=random) + 0.5 * torch.randn(32, 3, 32, 32, generator=random)
        norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        with torch.no_grad():
            for norm in norms:
                norm.momentum = 1.0
            net.train().features(images)
            for norm in norms:
                norm.momentum = 0.1
            for layer in net.classifier[:-1]:
                if isinstance(layer, torch.nn.Linear):
                    layer.weight *= 10
        return net.eval()

    return fitted


@pytest.fixture(scope="session")
def weight_file(tmp_path_factory: pytest.TempPathFactory, lively: Callable[[Net], Net]) -> Path:
    """Weights of MobileNetV3-Small, width 0.35, that say they were made with [-1, 1] pixels and SAME padding."""
    import safetensors.torch
    import torch

    from handlens import nets

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    metadata = {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5", "padding": "tensorflow_same"}
    state = lively(nets.create("mobilenet_v3_small", 10, width=0.35)).state_dict()
    safetensors.torch.save_file(state, path, metadata=metadata)
    return path


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests' own cache for fixtures that are made before a test begins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDLENS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def full_run(
    session_cache: None, tmp_path_factory: pytest.TempPathFactory, tiny_photos: Path, weight_file: Path
) -> Run:
    """A finished run in mode "full" on the tiny photos. Not to be changed."""
    import handlens

    out = tmp_path_factory.mktemp("runs") / "full"
    return handlens.fit(tiny_photos, out=out, weights=str(weight_file), net="mobilenet_v3_small", mode="full", **QUICK)
