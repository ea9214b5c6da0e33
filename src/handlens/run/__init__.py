"""A trained network and photos in, guesses out: `load(run).predict(photo) -> [Guess(name, probability)]`.

A run is loaded by torch, a bundle by the runtime that it was made for, without torch. The pixels go the same way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from handlens import bundle
from handlens.errors import HandlensError, PhotoError, need, not_finite
from handlens.evaluate import calibration
from handlens.evaluate.unknown import Rejection
from handlens.photos import in_threads
from handlens.preprocess import Preprocess, Source
from handlens.run.artifact import Infer

MANY = 64  # photos for which a network is started once more where that makes them faster
# Photos in a batch: of a network that computes in one thread beside others, whose maps then stay in its core's cache,
# and of one that computes in all threads.
ALONE, TOGETHER = 4, 16
UNCALIBRATED = (
    f"its probabilities are uncalibrated: it was trained with fewer than {calibration.FEWEST} validation photos, "
    "or by an early version"
)

__all__ = ["Answer", "Classifier", "Guess", "from_weights", "load"]


class Guess(NamedTuple):
    """A class's name and its probability in [0, 1]."""

    name: str
    probability: float


class Answer(NamedTuple):
    """What is said of one photo.

    guesses: the most probable classes, best first.
    score:   how much the photo is like the classes (`Rejection.scores`); None where no threshold travels with the net.
    unknown: whether the score is below the threshold: the photo shows none of the classes.
    """

    guesses: list[Guess]
    score: float | None
    unknown: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained network ready for use, on any runtime.

    infer: uint8 RGB (B, image_px, image_px, 3), as `preprocess.load` gives it -> (probabilities, logits), both float32
    (B, K). One call at a time.
    net: the network's name.  runtime: "torch", "onnx", "litert", "executorch" or "openvino".
    precision: "float32", "float16", "bfloat16" or "int8".  card: what a bundle tells of its network, else empty.
    note: what its user should know of how it was put together, or "".
    calibrated: whether its probabilities are, by a temperature; None where that cannot be known.
    rejection: which score and threshold tell photos of none of the classes, or None.
    start_shared: where the runtime can do that, starts the network again as a function that several threads may call at
    once, each computing alone: many photos go faster so.
    """

    classes: tuple[str, ...]
    preprocess: Preprocess
    infer: Infer
    net: str = ""
    runtime: str = "torch"
    precision: str = "float32"
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    calibrated: bool | None = None
    rejection: Rejection | None = None
    start_shared: Callable[[], Infer] | None = None

    def answers(self, photos: np.ndarray, top: int = 5) -> list[Answer]:
        """What is said of each of uint8 RGB (B, image_px, image_px, 3), as `preprocess.load` gives it."""
        return self._answers(self.infer, photos, top)

    def _answers(self, infer: Infer, photos: np.ndarray, top: int) -> list[Answer]:
        probabilities, logits = infer(photos)
        guesses = [self._guesses(row, top) for row in probabilities]
        if self.rejection is None:
            return [Answer(best, None, False) for best in guesses]
        scores = self.rejection.scores(probabilities, logits).tolist()
        return [
            Answer(best, score, score < self.rejection.threshold) for best, score in zip(guesses, scores, strict=True)
        ]

    def predict_batch(self, photos: np.ndarray) -> np.ndarray:
        """uint8 RGB (B, image_px, image_px, 3), as `preprocess.load` gives it -> float32 (B, K) probabilities."""
        return self.infer(photos)[0]

    def predict(self, photo: Source, top: int = 5) -> list[Guess]:
        """The `top` most probable classes of one photo, best first.

        Raises PhotoError when it cannot be read, HandlensError when the answer is not finite.
        """
        return self._guesses(self.predict_batch(self.preprocess.load(photo)[None])[0], top)

    def predict_many(
        self,
        paths: Iterable[str | os.PathLike[str]],
        top: int = 5,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[Path, list[Guess] | PhotoError]]:
        """Guesses for many photos: `answer_many` without the scores."""
        for path, answer in self.answer_many(paths, top, batch_size, progress):
            yield path, answer if isinstance(answer, PhotoError) else answer.guesses

    def answer_many(
        self,
        paths: Iterable[str | os.PathLike[str]],
        top: int = 5,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[Path, Answer | PhotoError]]:
        """What is said of each of many photos, in order; threads decode ahead of the network.

        A photo that cannot be read comes with its PhotoError in place of an answer. batch_size: photos that go through
        the network at once, by default ALONE where each thread computes alone, and TOGETHER elsewhere. `progress` is
        called with (done, total) after each batch. Raises HandlensError for one path in place of many.
        """
        if isinstance(paths, (str, bytes, os.PathLike)):
            raise HandlensError(f"{str(paths)!r} is one photo, expected a list of photos", "put it into a list")
        photos = [Path(path) for path in paths]
        start_shared = self.start_shared if len(photos) >= MANY else None
        if batch_size is None:
            batch_size = ALONE if start_shared else TOGETHER
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        batches = [photos[first : first + batch_size] for first in range(0, len(photos), batch_size)]

        def read(path: Path) -> np.ndarray | PhotoError:
            try:
                return self.preprocess.load(path)
            except PhotoError as error:
                return error

        def tell(infer: Infer, images: Sequence[np.ndarray | PhotoError]) -> list[Answer | PhotoError]:
            readable = [image for image in images if isinstance(image, np.ndarray)]
            found = iter(self._answers(infer, np.stack(readable), top) if readable else ())
            return [image if isinstance(image, PhotoError) else next(found) for image in images]

        with contextlib.ExitStack() as stack:
            told: Iterator[list[Answer | PhotoError]]
            if start_shared:  # each thread reads its photos and answers them
                shared = start_shared()
                each = in_threads(lambda batch: tell(shared, [read(path) for path in batch]), batches, ahead=16)
                told = stack.enter_context(contextlib.closing(each))
            else:  # threads read ahead of the network
                images = stack.enter_context(contextlib.closing(in_threads(read, photos, ahead=4 * batch_size)))
                told = (tell(self.infer, list(itertools.islice(images, len(batch)))) for batch in batches)
            done = 0
            for batch, answers in zip(batches, told, strict=True):
                yield from zip(batch, answers, strict=True)
                done += len(batch)
                if progress:
                    progress(done, len(photos))

    def _guesses(self, probabilities: np.ndarray, top: int) -> list[Guess]:
        if not np.isfinite(probabilities).all():
            raise not_finite("probabilities")
        best = np.argsort(-probabilities, kind="stable")[: max(1, top)]
        return [Guess(self.classes[index], float(probabilities[index])) for index in best]


def load(path: str | os.PathLike[str], threads: int = 0, device: str = "") -> Classifier:
    """The classifier in a run folder or a bundle; `threads` of the processor compute it, 0 for the runtime's choice.

    device: of torch, for a run; by default the accelerator that torch finds, else the processor ("cpu"). With a run
    the process keeps memory that is freed, up to 2 GB, for its next use (`torch_runtime.keep_freed_memory`).

    Raises HandlensError when there is none, when it is damaged, when its runtime (torch for a run) is missing, and for
    threads or a device that there cannot be.
    """
    folder = Path(os.path.expanduser(path))
    if not folder.exists():
        raise HandlensError(
            f"there is no run or bundle {folder}", "`handlens train PHOTOS` makes a run, `handlens export RUN` a bundle"
        )
    if bundle.is_bundle(folder):
        from handlens.run import bundles

        return bundles.load(folder, threads)
    need("train", {"torch": "torch"})
    from handlens import checkpoint
    from handlens.run import torch_runtime

    found = checkpoint.load(folder)
    return Classifier(
        classes=found.classes,
        preprocess=found.preprocess,
        infer=torch_runtime.predictor(found.net, found.preprocess, device, threads),
        net=found.name,
        note="" if found.calibration else UNCALIBRATED,
        calibrated=found.calibration is not None,
        rejection=_rejection(folder, found.rejection),
    )


def _rejection(folder: Path, stored: Mapping[str, Any] | None) -> Rejection | None:
    if stored is None:
        return None
    try:
        return Rejection(**stored)
    except TypeError:
        raise HandlensError(f"{folder} has no proper 'rejection'", "it may be damaged; train again") from None


def from_weights(
    net: str,
    weights: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 0,
) -> Classifier:
    """The classifier of a network's name and a weight file (or "imagenet"), with the file's own preprocessing.

    Such files have no class names, but those of a run, whose folder has them: they are taken to be `classes` in sorted
    order; without `classes` they are numbers. `note` says so. `progress` is called with bytes (done, total) of a
    download. Raises HandlensError for an unknown net, a file that does not fit it or has no classifier, and when the
    counts of classes differ.
    """
    need("train", {"torch": "torch"})
    from handlens import checkpoint
    from handlens.nets import weights as published
    from handlens.run import torch_runtime

    file = published.find(net, os.fspath(weights), progress=progress)
    if file.num_classes is None:
        of_run = published.run_of(weights)  # with an extra layer, which belongs to the run
        raise HandlensError(
            f"{weights} has no classifier of {net}'s own, only the layers before it",
            f"name the run's folder, {of_run}" if of_run else "train one from it first",
        )
    folder = published.run_of(weights)
    own = checkpoint.read_facts(folder)["classes"] if folder else ()
    if len(own) == file.num_classes:
        infer = torch_runtime.predictor(published.load(file), file.preprocess, threads=threads)
        note = f"the names of the classes are those of {folder}, whose calibration is left out"
        return Classifier(classes=tuple(own), preprocess=file.preprocess, infer=infer, net=net, note=note)
    if classes is not None and len(classes) != file.num_classes:
        raise HandlensError(
            f"{weights} gives {file.num_classes} classes, the photos have {len(classes)}",
            "evaluate it on photos of the classes it was trained on, or train from it first",
        )
    width = len(str(file.num_classes - 1))
    named = tuple(sorted(classes)) if classes is not None else tuple(f"{i:0{width}}" for i in range(file.num_classes))
    return Classifier(
        classes=named,
        preprocess=file.preprocess,
        infer=torch_runtime.predictor(published.load(file), file.preprocess, threads=threads),
        net=net,
        note=f"{weights} names no classes: "
        + ("they are taken to be the folder's in sorted order" if classes is not None else "they are shown as numbers")
        + (f"; {file.label} is one {file.pixels}" if file.guess else ""),
    )
