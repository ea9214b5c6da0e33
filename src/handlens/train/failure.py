"""What explains a mistake: where the network looked, and the training photos that it finds most alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from handlens import photos as photos_room
from handlens.errors import HandlensError
from handlens.evaluate.nearest import Nearest
from handlens.explain import saliency
from handlens.nets import Net
from handlens.photos import Photos
from handlens.preprocess import Preprocess
from handlens.train.features import features
from handlens.train.recipe import Recipe

Look = Callable[[np.ndarray, int], np.ndarray]


def looks(net: Net, preprocess: Preprocess, note: Callable[[str], None]) -> Look | None:
    """`saliency.explainer`, tried once on a blank photo; None where that fails, with a sentence for `note`."""
    try:
        look = saliency.explainer(net, preprocess)
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
    net: Net,
    recipe: Recipe,
    train: Photos,
    sha256: dict[str, str],
    preprocess: Preprocess,
    device: torch.device | None = None,
    vectors: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Nearest:
    """The training photos in the feature space of a network, which is one without an extra layer (`without_hidden`).

    vectors: their features (N, F), where they are known; else they are read from the cache where they are there, as
    after mode "head", whose settings are used then.
    """
    device = device or torch.device("cpu")
    frozen = recipe.mode == "head"
    precision = recipe.precision if frozen and recipe.precision != "auto" else "32-true"

    def embed(photos: Photos, names: dict[str, str], views: int, seen: Any) -> np.ndarray:
        found = features(
            net,
            photos,
            names,
            preprocess,
            views=views,
            min_area=max(0.5, recipe.crop_min_area) if frozen else 0.5,
            flip=recipe.flip if frozen else False,
            precision=precision,
            device=device,
            progress=seen,
        )
        return found[0]

    if vectors is None:
        vectors = embed(train, sha256, recipe.head_views if frozen else 0, progress)
    return Nearest(train, vectors, lambda photos: embed(photos, photos_room.examine(photos).sha256, 0, None))
