"""What single layers of a network give: by name, or by the number of a stage."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from handlens.errors import HandlensError, did_you_mean
from handlens.nets import Net
from handlens.preprocess import Preprocess


class Maps(NamedTuple):
    """The maps (B, C, h, w), float32, that a layer gives for some photos, and its name.

    The name is "" where a stage's map comes from no single layer.
    """

    layer: str
    values: np.ndarray


def feature_maps(net: Net, preprocess: Preprocess, photos: np.ndarray, layer: str) -> Maps:
    """What a layer makes of photos, uint8 RGB (B, image_px, image_px, 3) as `preprocess.load` gives them.

    `layer` is a module's name ("features.3", "layer2.0.conv1") or a stage's number, counted from "1". Tokens of a
    Vision Transformer come as the map of their patches. Raises HandlensError for a name that does not exist, naming
    near ones, and for a layer that gives no maps.
    """
    images = as_input(preprocess, photos)
    if layer.isdigit():
        name, found = stage(net, images, layer)
    else:
        name, found = layer, output(net, images, layer)
    found = _patches(found) if found.ndim == 3 else found
    if found.ndim != 4:
        raise no_maps(layer, found)
    return Maps(name, found.float().numpy())


def stages(net: Net, preprocess: Preprocess, photos: np.ndarray) -> list[Maps]:
    """The maps at the end of each stage, largest first, as the network's own `features` gives them."""
    return [Maps(name, found.float().numpy()) for name, found in stage_outputs(net, as_input(preprocess, photos))]


def describe(maps: np.ndarray) -> dict[str, Any]:
    """Numbers of one photo's maps (C, h, w): `shape`, and for each channel `mean`, `max` and `zero_share`, the share
    of its cells that are exactly 0."""
    cells = maps.reshape(len(maps), -1).astype(np.float64)
    return {
        "shape": list(maps.shape),
        "mean": cells.mean(1).tolist(),
        "max": cells.max(1).tolist(),
        "zero_share": (cells == 0).mean(1).tolist(),
    }


# ---- within the room -------------------------------------------------------------------------------------------------
def as_input(preprocess: Preprocess, photos: np.ndarray) -> Tensor:
    """uint8 RGB photos (B, image_px, image_px, 3) -> what a network takes, (B, 3, image_px, image_px)."""
    return torch.from_numpy(preprocess.normalise(photos))


def find(net: Net, layer: str) -> nn.Module:
    """The module of a name. Raises HandlensError, naming near ones, when there is none."""
    with contextlib.suppress(AttributeError):
        if layer:
            return net.get_submodule(layer)
    modules = [name for name, _ in net.named_modules() if name]
    hint = did_you_mean(layer, modules, f"its parts are {', '.join(dict(net.named_children()))}")
    raise HandlensError(f"{type(net).__name__} has no layer {layer!r}", hint)


@contextlib.contextmanager
def in_use(net: nn.Module) -> Iterator[None]:
    """While it is open, the network is in evaluation mode, in which looking at it changes nothing."""
    training = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


def output(net: Net, images: Tensor, layer: str) -> Tensor:
    """What the layer of a name gives when the network runs. Raises HandlensError when it gives no single tensor."""
    found: list[Any] = []

    def see(_: str, given: Any) -> None:
        found.append(given.clone() if isinstance(given, Tensor) else given)  # what follows may work in place

    with in_use(net), hooks(net, [layer], see), torch.no_grad():
        net(images)
    if not found:
        raise HandlensError(
            f"the layer {layer!r} is not run by itself when {type(net).__name__} answers", "name a layer within it"
        )
    if not isinstance(found[-1], Tensor):
        raise HandlensError(
            f"the layer {layer!r} gives a list of maps, not one",
            "name a layer within it, or a stage by its number",
        )
    return found[-1]


@contextlib.contextmanager
def hooks(net: Net, names: Sequence[str], see: Callable[[str, Any], None]) -> Iterator[None]:
    """While it is open, `see(name, output)` is called whenever one of the modules has run."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, given, result: see(name, result)

    held: list[RemovableHandle] = []
    try:
        for name in names:
            held.append(find(net, name).register_forward_hook(hook(name)))  # noqa: PERF401  # what was hooked is freed
        yield
    finally:
        for handle in held:
            handle.remove()


def stage_outputs(net: Net, images: Tensor) -> list[tuple[str, Tensor]]:
    """(name of the layer that gives it, or "", map) at the end of each stage."""
    given: dict[int, tuple[str, Tensor]] = {}  # the tensors are held, so that no id comes twice

    def see(name: str, result: Any) -> None:
        if isinstance(result, Tensor):
            given[id(result)] = (name, result)  # of nested modules that give the same map, the outermost comes last

    names = [name for name, _ in net.named_modules() if name]
    with in_use(net), hooks(net, names, see), torch.no_grad():
        return [(given.get(id(found), ("", found))[0], found) for found in net.features(images)]


def stage(net: Net, images: Tensor, number: str) -> tuple[str, Tensor]:
    """The same for one stage, counted from "1". Raises HandlensError when there are fewer."""
    found = stage_outputs(net, images)
    if not 1 <= int(number) <= len(found):
        raise HandlensError(f"{type(net).__name__} has no stage {number}", f"its stages are 1 to {len(found)}")
    return found[int(number) - 1]


def no_maps(layer: str, found: Tensor) -> HandlensError:
    """The error for a layer whose output has no height and width."""
    return HandlensError(f"the layer {layer!r} gives {tuple(found.shape)}, no maps", "name a convolution or a stage")


def _patches(tokens: Tensor) -> Tensor:
    """Tokens (B, 1 + side², D) -> (B, D, side, side), without the class token; others as they are."""
    side = math.isqrt(tokens.shape[1] - 1)
    if side**2 != tokens.shape[1] - 1:
        return tokens
    return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, side, side)
