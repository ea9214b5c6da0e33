"""The parity gate: an exported file answers real photos on its real runtime, beside the network it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handlens import photos as photos_room
from handlens.errors import HandlensError, counted
from handlens.evaluate.unknown import Rejection
from handlens.nets import Net
from handlens.nets.pixels import FromPixels
from handlens.photos import Photos
from handlens.preprocess import Preprocess
from handlens.run import Classifier
from handlens.run.bundles import TOLERANCE

LOGITS = 10  # times the tolerance of probabilities: that of logits, as a part of the largest
SHOWN = 10  # photos that differ, named in the error
SAMPLES = 16  # along each side of a stage's map, compared when the gate looks for what differs first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A photo that two classifiers answer differently: the names and probabilities of each one's first guess."""

    photo: str
    expected: str
    expected_probability: float
    got: str
    got_probability: float
    greatest: float
    """Greatest difference of the probability of any one class."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parity:
    """Two classifiers' answers to the same photos, the second's put into the first's order of classes by name.

    expected, got: (N, K) probabilities; expected_logits, got_logits: (N, K); labels: (N,) indices into `classes`;
    paths: the N photos.
    """

    precision: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: np.ndarray
    expected: np.ndarray
    got: np.ndarray
    expected_logits: np.ndarray
    got_logits: np.ndarray

    @property
    def greatest(self) -> float:
        """Greatest difference of a probability over all photos and classes."""
        return float(np.abs(self.expected - self.got).max())

    @property
    def guessed(self) -> np.ndarray:
        """(N,) index of the exported file's first guess, -1 where its answer is no numbers."""
        return np.where(np.isfinite(self.got).all(1), self.got.argmax(1), -1)

    @property
    def agreement(self) -> float:
        """Fraction of photos with the same first guess."""
        return float((self.expected.argmax(1) == self.guessed).mean())

    @property
    def top1(self) -> float:
        """Fraction of photos whose first guess by the exported file is their label."""
        return float((self.guessed == self.labels).mean())

    @property
    def drop(self) -> float:
        """By how much the fraction of right first guesses fell; below zero when it rose."""
        return float((self.expected.argmax(1) == self.labels).mean()) - self.top1

    @property
    def drop_standard_error(self) -> float:
        """Standard error of `drop`, paired: from the photos that only one of the two gets right.

        (n10 + n01 - (n10 - n01)² / N) / N², the root of it, as in McNemar's test.
        """
        right = [guessed == self.labels for guessed in (self.expected.argmax(1), self.guessed)]
        return float((right[0].astype(float) - right[1].astype(float)).std() / np.sqrt(len(self.labels)))

    @property
    def divergence(self) -> float:
        """Mean Kullback-Leibler divergence of the exported file's probabilities from the network's, in nats."""
        p, q = (np.maximum(answers.astype(np.float64), 1e-9) for answers in (self.expected, self.got))
        return float((p * np.log(p / q)).sum(1).mean())

    @property
    def tolerance(self) -> float:
        """What `greatest` may be; infinite for int8, which is judged by accuracy."""
        return TOLERANCE.get(self.precision, float("inf"))

    @property
    def logits_apart(self) -> np.ndarray:
        """(N,) greatest difference of a photo's logits, as a part of the largest of all photos or, if more, of 1."""
        apart: np.ndarray = np.abs(self.expected_logits - self.got_logits).max(1)
        return apart / max(1.0, float(np.abs(self.expected_logits).max()))

    @property
    def close(self) -> np.ndarray:
        """(N,) whether the network's two best classes are within twice the tolerance: either may come first."""
        ordered = np.sort(self.expected, axis=1)
        ties: np.ndarray = ordered[:, -1] - ordered[:, -2] <= 2 * self.tolerance
        return ties

    def differing(self) -> list[Difference]:
        """The photos whose answers differ by more than the precision allows, the greatest difference first.

        Logits count, too, for what is called unknown goes by them: all of them may be off with the same probabilities.
        Answers that are no numbers differ in every precision.
        """
        gap = np.abs(self.expected - self.got).max(1)
        other = (self.expected.argmax(1) != self.guessed) & ~self.close
        far = self.logits_apart > LOGITS * self.tolerance
        gap[self.guessed < 0] = np.inf
        return self._sorted((gap > self.tolerance) | other | far | (self.guessed < 0), gap)

    def lost(self) -> list[Difference]:
        """The photos that the network answers rightly and the exported file does not, the greatest difference first."""
        gap = np.abs(self.expected - self.got).max(1)
        gap[self.guessed < 0] = np.inf
        return self._sorted((self.expected.argmax(1) == self.labels) & (self.guessed != self.labels), gap)

    def _sorted(self, chosen: np.ndarray, gap: np.ndarray) -> list[Difference]:
        """What is said of the chosen photos, by their `gap` (N,)."""
        return [
            Difference(
                photo=self.paths[i],
                expected=self.classes[self.expected[i].argmax()],
                expected_probability=float(self.expected[i].max()),
                got=self.classes[self.got[i].argmax()],
                got_probability=float(self.got[i].max()),
                greatest=float(gap[i]),
            )
            for i in sorted(np.flatnonzero(chosen), key=lambda i: -gap[i])
        ]

    def unknown_otherwise(self, rejection: Rejection) -> np.ndarray:
        """Indices of the photos that only one of the two calls unknown.

        In float those do not count whose score is as near to the threshold as rounding brings it.
        """
        own = rejection.scores(self.expected, self.expected_logits)
        theirs = rejection.scores(self.got, self.got_logits)
        other = (own < rejection.threshold) != (theirs < rejection.threshold)
        if self.precision in TOLERANCE:
            other &= np.abs(own - rejection.threshold) > 10 * self.tolerance * max(1.0, abs(rejection.threshold))
        return np.flatnonzero(other)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values."""
        return {
            "num_photos": len(self.paths),
            "greatest_difference": self.greatest,
            "tolerance": None if self.precision not in TOLERANCE else self.tolerance,
            "agreement": self.agreement,
            "top1": self.top1,
            "drop": self.drop,
            "drop_standard_error": self.drop_standard_error,
            "num_close": int(self.close.sum()) if self.precision in TOLERANCE else None,
        }


def compare(
    reference: Classifier,
    exported: Classifier,
    photos: Photos,
    progress: Callable[[int, int], None] | None = None,
    batch_size: int = 32,
    views: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda images: [images],
) -> Parity:
    """Ask both about each photo, each through its own pixel contract.

    `photos` are labelled in the reference's classes. With `views`, which makes several batches of uint8 (B, H, W, 3)
    from one, each photo counts once a view. Raises HandlensError when the two do not name the same classes, and for
    photos of other classes or none.
    """
    if set(exported.classes) != set(reference.classes):
        raise HandlensError(
            f"the exported file names the classes {', '.join(exported.classes)}, "
            f"the network {', '.join(reference.classes)}",
            "export it again",
        )
    if not len(photos) or photos.classes != reference.classes:
        raise HandlensError(
            f"there are {counted(len(photos), 'photo')} of the classes {', '.join(photos.classes)}, expected some of "
            f"the network's, in its order: {', '.join(reference.classes)}",
            "compare by photos of the classes that it was trained on",
        )
    order = [exported.classes.index(name) for name in reference.classes]
    expected: list[np.ndarray] = []
    got: list[np.ndarray] = []
    logits: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    labels: list[np.ndarray] = []
    paths: list[str] = []
    done = 0
    same_pixels = exported.preprocess == reference.preprocess
    theirs = photos_room.batches(photos, exported.preprocess, batch_size) if not same_pixels else None
    for images, batch_labels in photos_room.batches(photos, reference.preprocess, batch_size):
        own = views(images)
        other = views(next(theirs)[0]) if theirs else own
        for view in own:
            probabilities, values = reference.infer(view)
            expected.append(probabilities)
            logits[0].append(values)
        for view in other:
            probabilities, values = exported.infer(view)
            got.append(probabilities[:, order])
            logits[1].append(values[:, order])
        labels += [batch_labels] * len(own)
        paths += photos.paths[done : done + len(images)] * len(own)
        done += len(images)
        if progress:
            progress(done, len(photos))
    return Parity(
        precision=exported.precision,
        classes=reference.classes,
        paths=tuple(paths),
        labels=np.concatenate(labels),
        expected=np.concatenate(expected),
        got=np.concatenate(got),
        expected_logits=np.concatenate(logits[0]),
        got_logits=np.concatenate(logits[1]),
    )


def told(differences: Sequence[Difference]) -> str:
    """The first SHOWN photos that differ, with both answers to each, and how many more there are."""
    more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    return (
        "; ".join(
            f"{d.photo}: {d.expected} {d.expected_probability:.4f}, exported {d.got} {d.got_probability:.4f}"
            for d in differences[:SHOWN]
        )
        + more
    )


Convert = Callable[[Net, Preprocess], Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]
"""A network and its contract -> the function of uint8 photos that its exported file is on the target's runtime."""


def gate(parity: Parity, reference: Classifier, exported: Classifier, net: Net, photos: Photos, again: Convert) -> None:
    """Raise HandlensError if the answers differ by more than the precision allows; it says where they part.

    `net` is what was exported and `again` exports any network the same way and runs it: with these the first thing
    that differs is looked for, from the pixels to the logits, on the photo that differs most.
    """
    differing = parity.differing()
    if not differing:
        return
    photo = photos.root / differing[0].photo
    where, hint = first_difference(photo, reference, exported, net, again, LOGITS * parity.tolerance)
    raise HandlensError(
        f"the exported file answers {len(differing)} of {counted(len(parity.paths), 'photo')} otherwise than the "
        f"network (probabilities may differ by {parity.tolerance:g}, they do by {parity.greatest:.2g}; logits by "
        f"{LOGITS * parity.tolerance:g} of the largest, they do by {parity.logits_apart.max():.2g}), and was not kept: "
        f"{told(differing)}; first to differ: {where}",
        hint,
    )


def first_difference(
    photo: Any, reference: Classifier, exported: Classifier, net: Net, again: Convert, tolerance: float
) -> tuple[str, str]:
    """What differs first on one photo's way, and what to try: pixels, normalisation, a stage, logits, class order.

    `tolerance` is relative to the greatest value of what is compared.
    """
    own, theirs = (classifier.preprocess.load(photo) for classifier in (reference, exported))
    if own.shape != theirs.shape or (own != theirs).any():
        fields = ", ".join(
            f"{name} {value!r} and {other!r}"
            for (name, value), other in zip(
                reference.preprocess.to_dict().items(), exported.preprocess.to_dict().values(), strict=True
            )
            if value != other
        )
        return f"the pixels (the two contracts have {fields})", "the file must carry the network's own pixel contract"
    images = own[None]
    _, logits = reference.infer(images)
    if exported.classes != reference.classes and _near(exported.infer(images)[1], logits, tolerance):
        return "the order of the classes (the logits are equal)", "the classes must be written in the network's order"
    for name, probe in probes(net):
        with torch.inference_mode():
            expected = FromPixels(probe, reference.preprocess).eval()(torch.from_numpy(np.array(images)))[1].numpy()
        got = again(probe, reference.preprocess)(images)[1]
        if not _near(got, expected, tolerance):
            return name, _TRY[name.split(" ")[0]]
    if _near(exported.infer(images)[1], got, tolerance / 100):  # of the last probe, which is the network
        where = "no part by itself (exported again, the network gives the file's answer)"
        if exported.precision == "float16":
            return where, "rounding to float16 adds up: leave out --float16"
        return where, "rounding adds up: try another --to, and report it with the versions of `handlens env`"
    return (
        "the finished file (exported again, nothing differs)",
        "it was changed after the conversion: export again, and look at what writes to that place",
    )


_TRY = {
    "normalisation": "channel order, mean and std in the file are not the network's: report it with the versions of "
    "`handlens env`",
    "stage": "a layer of that stage is converted otherwise than the network has it (padding, activation or a weight): "
    "try another --to, and report it with the versions of `handlens env`",
    "logits": "the classifier is converted otherwise than the network has it: try another --to, and report it",
}


def _near(got: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    return got.shape == expected.shape and bool(np.abs(got - expected).max() <= tolerance * np.abs(expected).max())


def probes(net: Net) -> list[tuple[str, Net]]:
    """Networks that end early: after the normalisation, after each stage of `features`, and after the logits."""
    with torch.no_grad():
        px = max(64, net.smallest_px)
        num_stages = len(net.features(torch.zeros(1, 3, px, px)))
    stages = [(f"stage {index + 1} of {num_stages} of the features", _Stage(net, index)) for index in range(num_stages)]
    return [("normalisation", _Stage(net, None)), *stages, ("logits", net)]


class _Stage(Net):
    """The values of one stage of another network in place of its logits, sampled on a grid of at most 16 x 16."""

    def __init__(self, net: Net, index: int | None) -> None:
        super().__init__()
        self.net, self.index = net, index
        self.smallest_px = net.smallest_px
        self.classifier = nn.Sequential(nn.Linear(1, 1))

    def forward(self, images: Tensor, depth: int | None = None) -> Tensor:
        maps = images if self.index is None else self.net.features(images)[self.index]
        if maps.ndim == 4:
            maps = maps[:, :, :: max(1, maps.shape[2] // SAMPLES), :: max(1, maps.shape[3] // SAMPLES)]
        return maps.flatten(1)
