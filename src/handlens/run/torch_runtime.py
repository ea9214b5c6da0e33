"""The torch runtime: a network and its pixel contract as a function of uint8 photos."""

from __future__ import annotations

import contextlib
import ctypes

import numpy as np
import torch

from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.nets.fold import fold_batch_norm
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Preprocess
from handlens.run.artifact import Infer, brief, check_photos, check_threads


def predictor(net: Net, preprocess: Preprocess, device: str = "", threads: int = 0) -> Infer:
    """uint8 RGB (B, H, W, 3) -> (probabilities, logits), float32 (B, K), in evaluation mode and float32.

    Batch norm is folded into the convolutions, which makes MobileNetV2 half as fast again on a CPU.
    `device` is one of torch's names; by default the accelerator torch finds, else the CPU. A number of `threads` holds
    for all of the process; 0 leaves it as it is. Raises HandlensError for threads and a device that there cannot be;
    the function raises it for other photos than the contract's.
    """
    check_threads(threads)
    place = _usable(device) if device else default_device()
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    wrapped = FromPixels(fold_batch_norm(net), preprocess).eval().to(place).to(memory_format=torch.channels_last)
    px = preprocess.image_px

    def infer(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_photos(photos, px, px)
        with torch.inference_mode():
            owned = torch.from_numpy(np.array(photos))  # a copy: Pillow's arrays are read-only, which torch warns of
            probabilities, logits = wrapped(owned.to(place))
            return probabilities.float().cpu().numpy(), logits.float().cpu().numpy()

    return infer


def _usable(device: str) -> torch.device:
    """The device of that name. Raises HandlensError when torch knows none, or cannot compute on it."""
    try:
        torch.zeros(1, device=device).cpu()
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as error:  # asserted: that torch was built for it
        raise HandlensError(
            f"torch cannot compute on the device {device!r} ({brief(error)})", 'give "cpu", or leave it out'
        ) from error


def default_device() -> torch.device:
    """The accelerator that torch finds (CUDA, XPU), else the CPU; Apple's only where it is asked for.

    Of networks in channels-last memory, as they are here, MPS has given wrong gradients without a word.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found and found.type != "mps" else torch.device("cpu")


def keep_freed_memory() -> None:
    """Tell glibc to keep large blocks for the next tensor instead of handing them back to the system.

    A network's activations are tens of megabytes each; by default each is mapped, zeroed page by page and unmapped
    again at every layer. Keeping them makes a float32 training step of MobileNetV2 take 1.8 s of processor time
    in place of 3.4 s. Elsewhere than on glibc this does nothing.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # names of mallopt's parameters in malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # the last one is Windows' word for CDLL(None)
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)
        mallopt(top_pad, 1 << 28)
