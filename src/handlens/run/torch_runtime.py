"""The torch runtime: a network and its pixel contract as a function of uint8 photos."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from handlens.nets import Net
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Preprocess


def predictor(net: Net, preprocess: Preprocess, device: str = "") -> Callable[[np.ndarray], np.ndarray]:
    """uint8 RGB (B, H, W, 3) -> float32 probabilities (B, K), in evaluation mode and float32.

    `device` is one of torch's names; by default the accelerator torch finds, else the CPU.
    """
    place = torch.device(device) if device else default_device()
    wrapped = FromPixels(net, preprocess).eval().to(place).to(memory_format=torch.channels_last)

    def predict_batch(photos: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            owned = torch.from_numpy(np.array(photos))  # a copy: Pillow's arrays are read-only, which torch warns of
            probabilities, _ = wrapped(owned.to(place))
            answer: np.ndarray = probabilities.float().cpu().numpy()
        return answer

    return predict_batch


def default_device() -> torch.device:
    """The accelerator that torch finds (CUDA, MPS, XPU), else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
