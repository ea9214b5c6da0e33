"""The wrapper that is exported: from a photo's pixels to probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from handlens.nets.layers import Net
from handlens.preprocess import GREY_LEVEL, Normalisation, Preprocess

_PHOTO = (1, 2, 3)  # the dimensions of one photo in a batch


def by_photo(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], each brought to a range of its own as `Preprocess.normalisation` says."""
    if normalisation == "fixed":
        return images
    low: Tensor | float = 0.0
    if normalisation == "min-max":
        low = images.amin(_PHOTO, keepdim=True)
        span = images.amax(_PHOTO, keepdim=True) - low
    elif normalisation == "z-score":
        images = images - images.mean(_PHOTO, keepdim=True)
        low = images.mean(_PHOTO, keepdim=True)  # what rounding left, which counts where a photo has little contrast
        span = (images - low).square().mean(_PHOTO, keepdim=True).sqrt()
    elif normalisation == "max-abs":
        span = images.amax(_PHOTO, keepdim=True)
    else:
        span = images.square().sum(_PHOTO, keepdim=True).sqrt()
    return (images - low) / span.clamp(min=GREY_LEVEL)


class FromPixels(nn.Module):
    """A network that takes uint8 RGB photos (B, H, W, 3), resized and cropped already.

    It gives (probabilities, logits), each (B, num_classes). Scaling, normalisation, channel order and layout are
    inside, and equal `Preprocess.normalise`: to the bit where the normalisation is "fixed", to rounding where it is
    each photo's own. The softmax is inside too, of the logits divided by the network's temperature: the probabilities
    are calibrated, the logits as the network gives them, or lowered where the photo is unlike its classes (`familiar`).
    """

    scale: Tensor
    shift: Tensor
    centres: Tensor

    def __init__(self, net: Net, preprocess: Preprocess) -> None:
        super().__init__()
        self.net = net
        self.bgr = preprocess.channels == "bgr"
        self.normalisation = preprocess.normalisation
        self.temperature = net.temperature
        self.familiar = net.familiar
        if self.familiar:
            self.register_buffer("centres", self.familiar.centres, persistent=False)
        # Not persistent: the contract is stored as such, and the state dict holds what was learned.
        scale, shift = preprocess.scale_and_shift()
        self.register_buffer("scale", torch.from_numpy(scale).reshape(3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.from_numpy(shift).reshape(3, 1, 1), persistent=False)

    def normalise(self, photos: Tensor) -> Tensor:
        """uint8 RGB (B, H, W, 3) -> float32 (B, 3, H, W), what the network was trained on."""
        images = photos.permute(0, 3, 1, 2).to(torch.float32).contiguous()  # in this order exporters keep one graph
        if self.normalisation != "fixed":
            images = by_photo(images / 255, self.normalisation)
        images = images * self.scale + self.shift
        return images.flip(1) if self.bgr else images

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        dtype = next(self.net.parameters()).dtype  # a network in float16 still gets its pixels scaled in float32
        images = self.normalise(photos).to(dtype)
        if self.familiar:
            vector, raw = self.net(images, self.familiar.depth)
            logits = self.familiar.lowered(vector.float(), raw.float(), self.centres)
        else:
            logits = self.net(images).float()
        scaled = logits if self.temperature == 1 else logits / self.temperature  # no product: INT8 would round that
        return scaled.softmax(1), logits
