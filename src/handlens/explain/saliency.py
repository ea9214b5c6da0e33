"""Where a network looks: Grad-CAM for convolutional networks, attention rollout for Vision Transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from handlens.errors import HandlensError, missing_extra
from handlens.explain import layers
from handlens.explain.overlay import place, scaled_size, seen_box
from handlens.nets import Net
from handlens.nets.layers import modules_of
from handlens.nets.vit import SelfAttention, VisionTransformer
from handlens.nets.vit_hybrid import HybridVisionTransformer
from handlens.preprocess import Preprocess

Method = Literal["gradcam", "rollout"]


def method_for(net: Net) -> Method:
    """Grad-CAM wherever there are convolutional stages; rollout for a pure Vision Transformer."""
    convolutional = isinstance(net, HybridVisionTransformer) or not isinstance(net, VisionTransformer)
    return "gradcam" if convolutional else "rollout"


def grad_cam(
    net: Net,
    preprocess: Preprocess,
    photos: np.ndarray,
    classes: Sequence[int],
    layer: str = "",
    checked: bool = False,
) -> np.ndarray:
    """What speaks for a class, and where (Selvaraju et al. 2017, arXiv 1610.02391): float32 (B, h, w), 0 and above.

    photos: uint8 RGB (B, image_px, image_px, 3).  classes: the class of each whose logit is explained.
    layer: a layer that gives maps, or a stage's number; by default the last convolutional stage. checked: it is the
    name that `grad_cam_layer` gave.
    The layer's maps are summed, each weighted by the mean gradient of the logit with respect to it; what is below 0
    becomes 0. Raises HandlensError where the network has no convolutional stage, or the layer gives no maps.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise missing_extra("train", "captum") from None
    images = layers.as_input(preprocess, photos)
    name = layer if checked else grad_cam_layer(net, preprocess, layer)
    with layers.in_use(net):
        cam = LayerGradCam(net, layers.find(net, name)).attribute(
            images.requires_grad_(), target=list(map(int, classes)), relu_attributions=True
        )
    return cam[:, 0].detach().float().numpy()


def rollout(net: Net, preprocess: Preprocess, photos: np.ndarray) -> np.ndarray:
    """How much of each patch reaches the class token through all layers (Abnar and Zuidema 2020, arXiv 2005.00928).

    photos: uint8 RGB (B, image_px, image_px, 3) -> float32 (B, side, side), in [0, 1], each at most 1 in sum. A
    layer's attention is the mean of its heads', half of it the identity for what passes by it; the layers' matrices
    are multiplied. It is the same for every class. Raises HandlensError for a network without self-attention.
    """
    through: Tensor | None = None
    for weights in attention(net, layers.as_input(preprocess, photos)):
        mean = weights.mean(1)
        mixed = (mean + torch.eye(mean.shape[-1])) / 2
        through = mixed if through is None else mixed @ through
    assert through is not None
    side = math.isqrt(through.shape[-1] - 1)
    return through[:, 0, 1:].reshape(-1, side, side).numpy()


def attention(net: Net, images: Tensor) -> list[Tensor]:
    """Images (B, 3, H, W) -> each layer's attention, (B, heads, N, N) with rows that sum to 1, first layer first."""
    tokens: list[tuple[SelfAttention, Tensor]] = []

    def see(module: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(module, SelfAttention)
        tokens.append((module, given[0]))

    handles = [module.register_forward_pre_hook(see) for module in modules_of(net, SelfAttention)]
    if not handles:
        raise HandlensError(
            f"attention rollout needs self-attention, which {type(net).__name__} has none of", "Grad-CAM is for it"
        )
    try:
        with layers.in_use(net), torch.no_grad():
            net(images)
            return [_attention(module, given) for module, given in tokens]
    finally:
        for handle in handles:
            handle.remove()


def _attention(module: SelfAttention, tokens: Tensor) -> Tensor:
    """The softmax that the layer's fused attention does not show."""
    batch, length, width = tokens.shape
    rows = 2 * width  # queries and keys, without the values
    qk = F.linear(tokens, module.in_proj_weight[:rows], module.in_proj_bias[:rows])
    q, k = qk.reshape(batch, length, 2, module.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)


def scaled(heat: np.ndarray, method: Method) -> np.ndarray:
    """A map (h, w) brought to [0, 1]: Grad-CAM's 0 stays 0, rollout's least becomes 0, the greatest 1."""
    heat = heat - (heat.min() if method == "rollout" else 0)
    return heat / heat.max() if heat.max() > 0 else heat


def explainer(
    net: Net, preprocess: Preprocess, method: Method | None = None, layer: str = "", longest_px: int | None = None
) -> Callable[[np.ndarray, int], np.ndarray]:
    """A function of (upright photo, uint8 RGB (H, W, 3) of any size; class) -> float32 map (h, w) over that photo.

    The map has the photo's size, or with `longest_px` no more than that on its longer side. It is in [0, 1], and NaN
    where the contract cuts the photo off. `method` is by default `method_for(net)`; `layer` is for Grad-CAM. The
    network is put into evaluation mode. Raises HandlensError as `grad_cam` and `rollout`.
    """
    net.eval()
    chosen = method or method_for(net)
    if chosen == "gradcam":
        layer = grad_cam_layer(net, preprocess, layer)
    else:
        rollout(net, preprocess, _blank(preprocess))  # says at once if it cannot

    def explain(photo: np.ndarray, class_index: int) -> np.ndarray:
        seen = preprocess.fit(Image.fromarray(photo))[None]
        if chosen == "rollout":
            heat = rollout(net, preprocess, seen)[0]
        else:
            heat = grad_cam(net, preprocess, seen, [class_index], layer, checked=True)[0]
        height, width = photo.shape[:2]
        size = (width, height)
        if longest_px and longest_px < max(size):
            size = scaled_size(*size, longest_px)
        across, down = size[0] / width, size[1] / height
        left, top, right, bottom = seen_box(preprocess, width, height)
        return place(scaled(heat, chosen), (left * across, top * down, right * across, bottom * down), *size)

    return explain


def grad_cam_layer(net: Net, preprocess: Preprocess, layer: str = "") -> str:
    """The name of the layer that Grad-CAM looks at: the one named, a stage's, or the last convolutional stage's.

    Raises HandlensError as `grad_cam`.
    """
    images = layers.as_input(preprocess, _blank(preprocess))
    if layer and not layer.isdigit():
        name = layer
    elif layer:
        name, _ = layers.stage(net, images, layer)
    elif isinstance(net, HybridVisionTransformer):
        name = f"backbone.stages.{len(net.backbone.stages) - 1}"
    elif isinstance(net, VisionTransformer):
        raise HandlensError(
            f"Grad-CAM needs convolutional stages, which {type(net).__name__} has none of",
            "attention rollout is for it",
        )
    else:
        name, _ = layers.stage_outputs(net, images)[-1]
    if not name:
        raise HandlensError(f"the map of stage {layer or 'the last'} comes from no single layer", "name a layer")
    found = layers.output(net, images, name)
    if found.ndim != 4:
        raise layers.no_maps(name, found)
    return name


def _blank(preprocess: Preprocess) -> np.ndarray:
    return np.zeros((1, preprocess.image_px, preprocess.image_px, 3), np.uint8)
