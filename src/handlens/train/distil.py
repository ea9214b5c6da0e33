"""Distillation: a network learns from the answers of a bigger one, beside the labels.

Distilling the Knowledge in a Neural Network. Hinton et al. 2015, arXiv 1503.02531.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens import checkpoint, nets
from handlens.errors import HandlensError
from handlens.preprocess import Preprocess
from handlens.train.recipe import Recipe


def divergence(logits: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence (a scalar) of softened answers, (B, K) logits each, from the expected ones.

    Times the square of the temperature, so that the gradients are of one size for all temperatures.
    """
    soft, aim = (F.log_softmax(values.float() / temperature, 1) for values in (logits, expected))
    return temperature**2 * F.kl_div(soft, aim, reduction="batchmean", log_target=True)


def sized(recipe: Recipe, given: Collection[str]) -> Recipe:
    """A recipe with crops that its teacher takes: of `image_px`, where it does not take a `train_px` that was chosen.

    given: the fields that were not. Raises HandlensError where it takes neither, and where it is no finished run.
    """
    facts = checkpoint.read_facts(recipe.teacher)
    with torch.device("meta"):
        net = checkpoint.build(facts["net"], len(facts["classes"]), facts["arguments"])
    try:
        _check_sizes(net, recipe)
    except HandlensError:
        if "train_px" in given:
            raise
        recipe = dataclasses.replace(recipe, train_px=0)
        _check_sizes(net, recipe)
    return recipe


def _check_sizes(net: nets.Net, recipe: Recipe) -> None:
    for px in recipe.crops_px:
        try:
            nets.check_input(net, px)
        except HandlensError as error:
            raise HandlensError(
                f"the teacher {recipe.teacher} cannot take the crops of this run: {error.message}",
                f"{error.hint}: give {'' if recipe.continue_run else '--image-px, or '}train_px in a recipe",
            ) from None


class Teacher(nn.Module):
    """The network of a finished run, which answers its pupil's images in the pupil's order of classes.

    weight: share of the loss that its answers have; temperature: by which both sides' logits are divided first.
    """

    ratio: Tensor
    shift: Tensor
    order: Tensor

    def __init__(self, recipe: Recipe, classes: Sequence[str], preprocess: Preprocess) -> None:
        """For a pupil with these classes, whose images are made by `preprocess`.

        Raises HandlensError where the run in `recipe.teacher` has other classes, or cannot take such images.
        """
        super().__init__()
        trained = checkpoint.load(recipe.teacher)
        own = trained.preprocess
        if sorted(trained.classes) != sorted(classes):
            differing = sorted(set(trained.classes) ^ set(classes))
            raise HandlensError(
                f"the teacher {recipe.teacher} tells other classes apart: {', '.join(differing)} are not in both",
                "train it on the same photos first",
            )
        if own.normalisation != preprocess.normalisation:
            raise HandlensError(
                f"the teacher {recipe.teacher} has normalisation {own.normalisation}, and this run "
                f"{preprocess.normalisation}",
                "train both with the same --normalisation",
            )
        _check_sizes(trained.net, recipe)
        self.net = trained.net.requires_grad_(False).to(memory_format=torch.channels_last)
        self.weight, self.temperature = recipe.distil_weight, recipe.distil_temperature
        self.flips = preprocess.channels == "bgr", own.channels == "bgr"  # mean and std are those of red, green, blue
        # pixel = image * pupil's std + pupil's mean; the teacher's image = (pixel - mean) / std
        mean, std = torch.tensor(own.mean), torch.tensor(own.std)
        self.register_buffer("ratio", (torch.tensor(preprocess.std) / std).view(3, 1, 1))
        self.register_buffer("shift", ((torch.tensor(preprocess.mean) - mean) / std).view(3, 1, 1))
        self.register_buffer("order", torch.tensor([trained.classes.index(name) for name in classes]))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The pupil's images (B, 3, H, W) -> logits (B, K)."""
        before, after = self.flips
        seen = (images.flip(1) if before else images) * self.ratio + self.shift
        return self.net(seen.flip(1) if after else seen)[:, self.order]

    def loss(self, images: Tensor, logits: Tensor, other: Tensor) -> Tensor:
        """The whole loss, of the pupil's logits and of the other one, which knows the labels."""
        return (1 - self.weight) * other + self.weight * divergence(logits, self(images), self.temperature)
