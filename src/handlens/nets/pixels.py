"""The wrapper that is exported: from a photo's pixels to probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from handlens.nets.layers import Net
from handlens.preprocess import Preprocess


class FromPixels(nn.Module):
    """A network that takes uint8 RGB photos (B, H, W, 3), resized and cropped already.

    It gives (probabilities, logits), each (B, num_classes). Scaling, normalisation, channel order and layout are
    inside, and equal `Preprocess.normalise` to the bit; the softmax is inside too.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Net, preprocess: Preprocess) -> None:
        super().__init__()
        self.net = net
        self.bgr = preprocess.channels == "bgr"
        # Not persistent: the contract is stored as such, and the state dict holds what was learned.
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(3, 1, 1), persistent=False)

    def normalise(self, photos: Tensor) -> Tensor:
        """uint8 RGB (B, H, W, 3) -> float32 (B, 3, H, W), what the network was trained on."""
        images = photos.permute(0, 3, 1, 2).to(torch.float32).contiguous()  # in this order exporters keep one graph
        images = (images / 255 - self.mean) / self.std
        return images.flip(1) if self.bgr else images

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(self.normalise(photos))
        return logits.softmax(1), logits
