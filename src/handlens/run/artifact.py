"""What the runtimes have in common: the function that each gives, and how each says that it cannot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from handlens.errors import HandlensError

# uint8 RGB (B, image_px, image_px, 3), any B -> (probabilities, logits), float32 (B, K); one call at a time
Infer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def cannot_load(runtime: str, file: str, error: Exception) -> HandlensError:
    """The error for an artifact that its runtime refuses."""
    return HandlensError(f"{runtime} cannot load {file} ({brief(error)})", "export it again")


def no_facts(file: str) -> HandlensError:
    """The error for an artifact without the facts that every exporter puts into it."""
    return HandlensError(f"{file} carries no facts of handlens", "make it by `handlens export`")


def brief(error: Exception) -> str:
    """An error of a runtime, which may be a page long, on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-150:]}"
