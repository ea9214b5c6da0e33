"""A bundle on its runtime: started, and checked against itself."""

from __future__ import annotations

import dataclasses
import importlib
import os
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from handlens import bundle as bundle_room
from handlens.bundle import Bundle, Golden
from handlens.errors import HandlensError, NotHereError
from handlens.evaluate.unknown import Rejection
from handlens.run.artifact import Infer, brief, check_photos, check_threads, no_facts

if TYPE_CHECKING:
    from handlens.run import Classifier

TOLERANCE = {"float32": 1e-3, "float16": 1e-2}  # of each probability; other precisions are judged by their answers
# In INT8 and bfloat16 a network may answer otherwise where the float one's two most probable classes are closer.
ROUNDED_MARGIN = 0.2
_GOLDEN_PX = 1 << 24  # of a golden photo, which is `bundle.small_jpeg`'s


def load(path: str | os.PathLike[str], threads: int = 0) -> Classifier:
    """The classifier in a bundle. Raises HandlensError when it is none, is damaged, or its runtime is missing."""
    return classifier_of(path, bundle_room.read(path), threads)


def classifier_of(path: str | os.PathLike[str], bundle: Bundle, threads: int = 0) -> Classifier:
    """The classifier in a bundle that was read from `path`. Raises HandlensError when its runtime is missing."""
    from handlens.run import UNCALIBRATED, Classifier

    shared = not threads and hasattr(runtime_of(bundle.runtime), "start_shared")
    return Classifier(
        classes=bundle.classes,
        preprocess=bundle.preprocess,
        infer=start(path, bundle, threads),
        net=bundle.net,
        runtime=bundle.runtime,
        precision=bundle.precision,
        card=bundle.card,
        note="" if bundle.calibration else UNCALIBRATED,
        calibrated=bundle.calibration is not None,
        rejection=Rejection(**bundle.rejection) if bundle.rejection else None,
        start_shared=(lambda: start_shared(path, bundle)) if shared else None,
    )


def runtime_of(name: str) -> ModuleType:
    """The module of a runtime; each has `start`.

    Those have `start_shared` that several threads may call at once, each computing alone: ExecuTorch's has not. Those
    have `embedded` that can read a file's facts where they cannot run it: Core ML, and LiteRT.
    """
    return importlib.import_module(f"handlens.run.{name}_runtime")


def start(path: str | os.PathLike[str], bundle: Bundle, threads: int = 0) -> Infer:
    """A bundle's network as a function, on its runtime.

    Raises HandlensError when the runtime is missing or refuses the artifact, and when the artifact carries other facts
    than the manifest; the function raises it for other photos than the bundle's, and when the artifact does not fit
    the bundle's photos and classes.
    """
    check_threads(threads)
    return _checked(path, bundle, *runtime_of(bundle.runtime).start(bundle.artifact, threads))


def start_shared(path: str | os.PathLike[str], bundle: Bundle) -> Infer:
    """As `start`, for several threads that may call the function at once, each computing alone."""
    return _checked(path, bundle, *runtime_of(bundle.runtime).start_shared(bundle.artifact))


def _checked(path: str | os.PathLike[str], bundle: Bundle, infer: Infer, embedded: str | None) -> Infer:
    if embedded is None:
        raise no_facts(f"the artifact in {path}")
    bundle_room.compare_facts(path, bundle, embedded)
    num_classes, px = len(bundle.classes), bundle.preprocess.image_px

    def checked(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_photos(photos, px, px)
        try:
            answers: tuple[np.ndarray, np.ndarray] = infer(photos)
        except Exception as error:  # each runtime has its own kinds
            size = "x".join(map(str, photos.shape))
            raise HandlensError(
                f"the artifact in {path} cannot be run on photos of {size} ({brief(error)})",
                "where threads share it, let one call it at a time; else export it again",
            ) from error
        if any(rows.shape != (len(photos), num_classes) for rows in answers):
            shapes = " and ".join("x".join(map(str, rows.shape)) for rows in answers)
            raise HandlensError(
                f"the artifact in {path} answers {len(photos)} photos with {shapes} numbers, for {num_classes} classes",
                "export it again",
            )
        return answers

    return checked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a bundle's runtime answers to one golden photo, beside what the trained network answered.

    expected, answered:        the most probable class.
    expected_p, answered_p:    its probability, in [0, 1].
    difference:                the largest between two probabilities of a class.
    margin:                    between the trained network's two most probable classes.
    """

    photo: str
    expected: str
    expected_p: float
    answered: str
    answered_p: float
    difference: float
    margin: float
    ok: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What is found in a bundle that can be read: its hashes and its manifest are right then.

    facts_agree: whether those inside the artifact are the manifest's; None if they could not be read here.
    answers:     one a golden photo; none where the runtime is missing. left_out says what was not done and why.
    """

    bundle: Bundle
    facts_agree: bool | None
    answers: tuple[Answer, ...]
    left_out: str = ""


def check(path: str | os.PathLike[str], threads: int = 0) -> Findings:
    """Read a bundle and let its runtime, if it is installed, answer the golden photos.

    Raises HandlensError when the bundle is damaged, is not what its manifest says, or cannot be run though its runtime
    is here. Answers that differ are not raised: see `Answer.ok`.
    """
    bundle = bundle_room.read(path)
    try:
        infer = start(path, bundle, threads)
    except NotHereError as error:
        return Findings(bundle=bundle, facts_agree=_facts_agree(path, bundle), answers=(), left_out=str(error))
    answers = tuple(
        compare(
            f"golden/{index}.jpg", golden, infer(bundle.preprocess.load(golden.photo, _GOLDEN_PX)[None])[0][0], bundle
        )
        for index, golden in enumerate(bundle.golden)
    )
    return Findings(bundle=bundle, facts_agree=True, answers=answers)


def _facts_agree(path: str | os.PathLike[str], bundle: Bundle) -> bool | None:
    """True if the artifact's own facts can be read without its runtime; None if not."""
    embedded = getattr(runtime_of(bundle.runtime), "embedded", None)
    if embedded is None:
        return None
    try:
        facts = embedded(bundle.artifact)
    except NotHereError:
        return None
    bundle_room.compare_facts(path, bundle, facts)
    return True


def compare(photo: str, golden: Golden, probabilities: np.ndarray, bundle: Bundle) -> Answer:
    """Judge the `probabilities` (K,) of a golden photo.

    Float: every probability within TOLERANCE, and the same top-1 unless the two most probable are within twice that.
    INT8 and bfloat16: the same top-1 unless these two are closer than ROUNDED_MARGIN.
    """
    expected = np.array(golden.probabilities)
    first, answered = int(expected.argmax()), int(probabilities.argmax())
    margin = float(expected[first] - np.delete(expected, first).max(initial=0.0))
    difference = float(np.abs(probabilities - expected).max())
    tolerance = TOLERANCE.get(bundle.precision, 1.0)
    close = margin < (2 * tolerance if bundle.precision in TOLERANCE else ROUNDED_MARGIN)
    return Answer(
        photo=photo,
        expected=bundle.classes[first],
        expected_p=float(expected[first]),
        answered=bundle.classes[answered],
        answered_p=float(probabilities[answered]),
        difference=difference,
        margin=margin,
        ok=difference <= tolerance and (first == answered or close),
    )
