"""A training recipe: one frozen value that says all a run did, and the choice of a good one for the photos at hand."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from handlens import files, nets
from handlens.errors import HandlensError, not_one_of

Mode = Literal["full", "last", "head", "scratch"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the result of a run, resolved: the same recipe on the same photos repeats it."""

    photos: str = ""
    """A folder with a subfolder a class, a CSV of path,label, or the name of a published set."""
    continue_run: str = ""
    """The folder of an earlier run to go on from, with its splits kept."""
    add: str = ""
    """Photos that a continued run learns in addition."""
    prune: float = 0.0
    """Share of the expansion channels that a continued run takes out before it goes on (MobileNetV2 and V3)."""
    teacher: str = ""
    """The folder of a finished run on the same classes, whose answers are learned beside the labels (distillation)."""

    unknown: str = ""
    """A folder of photos of none of the classes: half of them choose by which score and from where on a photo counts as
    unknown, the other half says how well that works. Without, the validation photos alone do (evaluate/unknown.py)."""

    net: str = "mobilenet_v3_small"
    mode: Mode = "full"
    """"full": all weights, from pretrained; "last": the last blocks and the classifier; "head": a new classifier on
    features computed once; "scratch": all weights, from random ones."""
    weights: str = "imagenet"
    """"imagenet", "none" or the path of a weight file; a run has one, model.safetensors."""
    width: float = 1.0
    """Multiplier of the channels."""
    image_px: int = 224
    """Height and width of what the network sees in use."""
    train_px: int = 0
    """Height and width of the crops it is trained on; 0 for `image_px`. A random crop shows things larger than they
    are in use, and somewhat smaller crops make up for it (arXiv 1906.06423); they take less time, too."""
    first_px: int = 0
    """Height and width of the crops in the first half of the epochs; 0 for `train_px`. They take a fraction of the
    time, which is worth more epochs (progressive learning, arXiv 2104.00298, section 4)."""
    last_px: int = 0
    """Height and width of the crops in the last quarter of the epochs, in mode scratch the last tenth, rounded up; 0
    for `train_px`. Trained on smaller maps alone, a network may answer worse on those in use, where batch norm's
    statistics and the padding's share are others (arXiv 1906.06423, section 4, adapts it at the size of use)."""
    normalisation: Literal["own", "min-max", "z-score", "max-abs", "l2"] = "own"
    """"own": what the weights were made with, ImageNet's mean and std for random ones; the others scale each photo by
    itself (`Preprocess.normalisation`), as it is in use too."""
    seed: int = 0

    epochs: int = 10
    batch_size: int = 32
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    """Highest learning rate of the classifier; warmed up from 0, then a cosine to 1 % of it."""
    backbone_lr_ratio: float = 0.2
    """Rate of all other weights as a share of `lr`."""
    warmup_epochs: float = 1.0
    weight_decay: float = 0.02
    """Not applied to biases and norms."""
    last_blocks: int = 4
    """Mode "last": how many pieces of the network are trained, the classifier counted in."""
    last_views: int = 0
    """Mode "last": random crops of each photo that are drawn once, so that the frozen blocks see each of them once
    (train/last.py); 0 to cut photos anew each epoch."""
    head_hidden: int = 0
    """Width of an extra fully connected layer before the classifier; 0 for none."""
    head_views: int = 2
    """Mode "head": augmented views of each photo beside the plain one; none are chosen where `augment` is none."""

    augment: Literal["none", "light", "trivial"] = "trivial"
    """"light": random crop and flip; "trivial": TrivialAugment (arXiv 2103.10158) as well."""
    crop_min_area: float = 0.35
    """Smallest share of the photo that a random crop shows."""
    flip: bool = True
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    label_smoothing: float = 0.1
    distil_weight: float = 0.7
    """With a teacher: share of the loss that its answers have; the labels have the rest."""
    distil_temperature: float = 2.0
    """With a teacher: what logits are divided by, so that the answers' smaller probabilities count too."""
    dropout: float = 0.2
    stochastic_depth: float = 0.0
    ema_decay: float = 0.99
    """Decay of the running average of the weights, which is what is judged and kept; 0 for none."""
    bn_momentum: float = 0.1
    freeze_bn: bool = False
    """Batch norm keeps the pretrained statistics: for few photos, whose batches would estimate poor ones."""
    balance: Literal["none", "weights", "sampling"] = "none"
    """Against unequal classes: weigh the loss by 1 / count (at most 10 : 1), or draw all classes equally often."""
    patience_epochs: int = 0
    """Stop when validation has not improved for so many epochs; 0 to train all epochs."""
    precision: Precision = "auto"
    """"auto" tries on this machine which is faster; the answer is stored."""
    cache_mb: int = 2048
    """Memory for decoded photos, what does not fit being decoded again each epoch, or for mode "last"'s maps."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if kind := _misfit(field.name, value):
                raise HandlensError(f"{field.name} is {value!r}, expected {kind}")
        bounds = (
            ("seed", self.seed, 0, 2**32 - 1, False),
            ("prune", self.prune, 0, 0.9, False),
            ("width", self.width, 0, 16, True),
            ("image_px", self.image_px, 1, 4096, False),
            ("train_px", self.train_px, 0, 4096, False),
            ("first_px", self.first_px, 0, 4096, False),
            ("last_px", self.last_px, 0, 4096, False),
            ("epochs", self.epochs, 1, 100_000, False),
            ("batch_size", self.batch_size, 2, 65_536, False),
            ("lr", self.lr, 0, 100, True),
            ("backbone_lr_ratio", self.backbone_lr_ratio, 0, 100, False),
            ("warmup_epochs", self.warmup_epochs, 0, self.epochs, False),
            ("weight_decay", self.weight_decay, 0, 100, False),
            ("last_blocks", self.last_blocks, 1, 10_000, False),
            ("last_views", self.last_views, 0, 1000, False),
            ("head_hidden", self.head_hidden, 0, 65_536, False),
            ("head_views", self.head_views, 0, 100, False),
            ("crop_min_area", self.crop_min_area, 0.01, 1, False),
            ("mixup_alpha", self.mixup_alpha, 0, 100, False),
            ("cutmix_alpha", self.cutmix_alpha, 0, 100, False),
            ("label_smoothing", self.label_smoothing, 0, 0.9, False),
            ("distil_weight", self.distil_weight, 0, 1, False),
            ("distil_temperature", self.distil_temperature, 0, 100, True),
            ("dropout", self.dropout, 0, 0.95, False),
            ("stochastic_depth", self.stochastic_depth, 0, 0.95, False),
            ("ema_decay", self.ema_decay, 0, 0.999999, False),
            ("bn_momentum", self.bn_momentum, 0, 1, True),
            ("patience_epochs", self.patience_epochs, 0, 100_000, False),
            ("cache_mb", self.cache_mb, 0, 10_000_000, False),
        )
        for name, value, low, high, above in bounds:
            if not low <= value <= high or (above and value == low):
                between = f"above {low} and at most {high}" if above else f"{low} to {high}"
                raise HandlensError(f"{name} is {value}, expected {between}")
        for field in dataclasses.fields(self):
            allowed = typing.get_args(_types()[field.name])
            if allowed and (value := getattr(self, field.name)) not in allowed:
                raise not_one_of(field.name, str(value), allowed)

    def crop_px(self, epoch: int) -> int:
        """Height and width of the random crops in an epoch, counted from 0."""
        at_the_end = math.ceil(self.epochs / (10 if self.mode == "scratch" else 4))
        first, last = epoch < self.epochs // 2, epoch >= self.epochs - at_the_end
        return (self.first_px if first else self.last_px if last else 0) or self.train_px or self.image_px

    @property
    def crops_px(self) -> list[int]:
        """The sizes of the random crops, each once, in the order in which they come."""
        return list(dict.fromkeys(self.crop_px(epoch) for epoch in range(self.epochs)))

    def work(self, since: int = 0) -> float:
        """What the epochs from `since` on cost, in epochs of crops of `train_px`: by the area of the crops."""
        areas = [self.crop_px(epoch) ** 2 for epoch in range(since, self.epochs)]
        return sum(areas) / (self.train_px or self.image_px) ** 2

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as TOML, atomically."""
        with files.atomic(path, "w") as file:
            file.write("# handlens train --recipe THIS_FILE repeats the run\n")
            for name, value in dataclasses.asdict(self).items():
                text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which TOML takes so only
                file.write(f"{name} = {text}\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read what `write` wrote; fields that are left out keep their defaults. Raises HandlensError."""
        return cls(**read_toml(path))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that a run's `handlens.json` holds. Raises HandlensError where it has fields that are unknown."""
        if unknown := [name for name in values if name not in _types()]:
            raise HandlensError(
                f"the run's recipe names {', '.join(unknown)}, which a recipe does not have",
                "use the handlens that made it",
            )
        return cls(**values)


@functools.cache
def _types() -> dict[str, Any]:
    return typing.get_type_hints(Recipe)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields that a recipe file sets, checked for names and types. Raises HandlensError."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # Windows' editors may put a mark first
    except OSError as error:
        raise HandlensError(f"{path} cannot be read ({error.strerror})", "check the path of the recipe") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HandlensError(f"{path} is not TOML ({error})", "see recipe.toml in any run's folder") from error
    hints = _types()
    for name, value in values.items():
        if name not in hints:
            raise HandlensError(f"{path} sets {name!r}, which a recipe does not have", f"it has {', '.join(hints)}")
        if kind := _misfit(name, value):
            raise HandlensError(f"{path} sets {name} to {value!r}, expected {kind}")
    return values


def _misfit(name: str, value: object) -> str:
    """The kind of value that a field wants, where `value` is of another; else ""."""
    hint = _types()[name]
    kind = str if typing.get_origin(hint) is Literal else hint
    fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    return "" if fits and (kind is bool or not isinstance(value, bool)) else str(kind.__name__)


FEW_A_CLASS = 10  # training photos, on average: up to so many, mode "last" is chosen

_FOR_MODE: dict[str, dict[str, Any]] = {
    "full": {"lr": 1.5e-3, "backbone_lr_ratio": 0.15},
    "last": {"lr": 2e-3, "backbone_lr_ratio": 0.25, "augment": "light", "last_views": 16},
    "head": {
        "lr": 1e-3,
        "epochs": 40,
        "batch_size": 128,
        "weight_decay": 0.05,
        "dropout": 0.5,
        "head_hidden": 512,
        "ema_decay": 0.0,
        "warmup_epochs": 2.0,
        "augment": "light",
        "crop_min_area": 0.5,
    },
    "scratch": {
        "lr": 1.5e-3,
        "backbone_lr_ratio": 1.0,
        "warmup_epochs": 5.0,
        "weight_decay": 0.05,
        "ema_decay": 0.998,
        "mixup_alpha": 0.1,
        "cutmix_alpha": 0.0,
        "crop_min_area": 0.25,
    },
}
_PHOTOS_SEEN = {"full": 30_000, "last": 30_000, "scratch": 240_000}  # epochs x photos that are enough for thousands
_EPOCHS = {"full": (8, 40), "last": (8, 40), "scratch": (60, 300)}


_UNUSED = {
    "full": ("last_blocks", "last_views", "head_views"),
    "last": ("head_views",),
    "head": (  # what is done to photos, or to weights that it leaves as they are
        "train_px", "first_px", "last_px", "backbone_lr_ratio", "ema_decay", "bn_momentum", "freeze_bn",
        "stochastic_depth", "mixup_alpha", "cutmix_alpha", "last_blocks", "last_views", "cache_mb",
    ),
    "scratch": ("last_blocks", "last_views", "head_views"),
}  # fmt: skip
_TEACHERS = ("distil_weight", "distil_temperature")


def unused(counts: Sequence[int], given: Mapping[str, Any]) -> list[str]:
    """What is given, with another value than would be chosen, and is not used by the mode, given or chosen."""
    mode = choose(counts, given).mode
    fields = (*_UNUSED[mode], *(() if given.get("teacher") else _TEACHERS))
    chosen = choose(counts, {name: value for name, value in given.items() if name not in fields})
    found = [name for name in fields if name in given and given[name] != getattr(chosen, name)]
    found = [f"{name} without a teacher" if name in _TEACHERS else name for name in found]
    return [*found, *(["TrivialAugment"] if mode == "head" and given.get("augment") == "trivial" else [])]


def mode_for(counts: Sequence[int]) -> Mode:
    """The mode for training photos with `counts` a class, where there are weights to begin from.

    With few photos "last" did at least as well as "full" in benchmarks/few_photos.py, in less time.
    """
    return "last" if sum(counts) <= FEW_A_CLASS * len(counts) else "full"


def choose(counts: Sequence[int], given: Mapping[str, Any]) -> Recipe:
    """The recipe for training photos with `counts` a class; every field in `given` is kept as it is.

    Without a mode, `mode_for` chooses it. Fewer photos get more epochs, smaller batches, frozen batch norm and weaker
    averaging; unequal classes (beyond 1 : 3) get a weighted loss. Raises HandlensError for a given value that is none
    for its field.
    """
    Recipe(**{**given, "warmup_epochs": 0.0})  # its bound is the epochs, which are chosen below
    num_photos = sum(counts)
    mode = given.get("mode") or (Recipe.mode if given.get("weights") == "none" else mode_for(counts))
    line = nets.entry(given.get("net", Recipe.net))
    chosen: dict[str, Any] = {**_FOR_MODE[mode], "mode": mode, "image_px": line.image_px}
    if mode == "head" and num_photos >= 1000:  # further views and epochs added less there than ten folds can tell
        chosen["head_views"] = 0
        if "epochs" not in given:
            chosen |= {"epochs": 20, "lr": 0.002}
    if given.get("augment") == "none":  # all views of a photo would be the same
        chosen["head_views"] = 0
        if mode == "last":
            chosen["last_views"] = 1
    if mode in _EPOCHS:
        low, high = _EPOCHS[mode]
        chosen["epochs"] = min(high, max(low, round(_PHOTOS_SEEN[mode] / num_photos)))
        image_px = given.get("image_px", line.image_px)
        if image_px >= 160 and line.family != "vit":  # a ViT's positions are learned for one size
            chosen["train_px"] = round(0.8 * image_px / 16) * 16
            sized = "train_px" in given or given.get("teacher")  # which may take photos of one size only
            many = mode == "full" and num_photos >= 1000
            if (mode == "scratch" or many) and not sized:
                chosen["last_px"] = image_px
            if many and not sized:
                chosen["first_px"] = round(0.57 * image_px / 16) * 16
                if given.get("first_px", 1):  # the time that small crops save
                    chosen["epochs"] = round(1.4 * chosen["epochs"])
        chosen["batch_size"] = 32 if num_photos >= 320 else max(4, min(16, num_photos // 4))
    epochs, batch_size = given.get("epochs", chosen["epochs"]), given.get("batch_size", chosen["batch_size"])
    steps = epochs * max(1, num_photos // batch_size)
    if chosen.get("ema_decay", Recipe.ema_decay):  # the average spans at most a tenth of the run
        chosen["ema_decay"] = min(chosen.get("ema_decay", Recipe.ema_decay), round(max(0.0, 1 - 10 / steps), 4))
    chosen["warmup_epochs"] = min(chosen.get("warmup_epochs", Recipe.warmup_epochs), round(epochs / 5, 2))
    chosen["freeze_bn"] = mode in ("full", "last") and num_photos < 200
    if max(counts) > 3 * min(counts):
        chosen["balance"] = "weights"
    return Recipe(**{**chosen, **given})
