"""What explains a mistake: where the network looked, and the training photos that it finds most alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

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


def nearest(
    frozen: Frozen,
    train: Photos,
    sha256: dict[str, str],
    vectors: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Nearest:
    """The training photos in the feature space of a network without an extra layer (`nets.without_hidden`).

    vectors: their features (N, F), where they are known; else they are computed, or read from the cache where they are
    there, as after mode "head".
    """
    if vectors is None:
        vectors = frozen.features(train, sha256, progress=progress)[0]
    return Nearest(train, vectors, lambda photos: frozen.features(photos, photos_room.examine(photos).sha256)[0])
