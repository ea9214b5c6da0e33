"""What explains a mistake: where the network looked, and the training photos that it finds most alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from handlens import photos as photos_room
from handlens.errors import HandlensError
from handlens.evaluate.nearest import Nearest
from handlens.explain import overlay, saliency
from handlens.nets import Net
from handlens.photos import Photos
from handlens.preprocess import Preprocess
from handlens.train.features import Frozen

Look = Callable[[np.ndarray, int], np.ndarray]


def looks(net: Net, preprocess: Preprocess, note: Callable[[str], None]) -> Look | None:
    """`saliency.explainer`, tried once on a blank photo; None where that fails, with a sentence for `note`."""
    try:
        look = saliency.explainer(net.cpu(), preprocess, longest_px=overlay.LONGEST_PX)
        look(np.zeros((preprocess.image_px, preprocess.image_px, 3), np.uint8), 0)
    except (HandlensError, RuntimeError) as error:
        note(f"the report does not show where the network looks: {str(error).splitlines()[0]}")
        return None
    return look


def without_hidden(net: Net, arguments: dict[str, Any]) -> Net:
    """A copy of the network less the extra layer that a recipe put before its last one: the features it is fed."""
    bare = copy.deepcopy(net)
    if arguments.get("head_hidden", 0):
        *layers, linear, _, _, last = bare.classifier
        assert isinstance(linear, nn.Linear) and isinstance(last, nn.Linear)
        bare.classifier = nn.Sequential(*layers, nn.Linear(linear.in_features, last.out_features))
    return bare


def nearest(
    frozen: Frozen,
    train: Photos,
    sha256: dict[str, str],
    vectors: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Nearest:
    """The training photos in the feature space of a network, which is one without an extra layer (`without_hidden`).

    vectors: their features (N, F), where they are known; else they are computed, or read from the cache where they are
    there, as after mode "head".
    """
    if vectors is None:
        vectors = frozen.features(train, sha256, progress=progress)[0]
    return Nearest(train, vectors, lambda photos: frozen.features(photos, photos_room.examine(photos).sha256)[0])
