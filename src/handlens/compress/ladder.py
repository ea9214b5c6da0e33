"""The INT8 ladder: ever more is done to a network until it answers as well in 8 bits as it did in 32."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from handlens import photos as photos_room
from handlens.compress.observe import Observer, Quantize
from handlens.errors import HandlensError
from handlens.export import fold_batch_norm, job, parity
from handlens.export.job import Progress, Source, named
from handlens.nets import Net
from handlens.photos import Photos
from handlens.preprocess import Preprocess

TARGETS = ("onnx", "litert", "executorch", "openvino")
MIN_AGREEMENT = 0.98  # of first guesses with the float network's, beside the loss of accuracy
SURE_AGREEMENT = 0.99  # where the ladder stops: a rung is chosen on these photos, and does a little worse on others
CALIBRATION_PHOTOS = 128
RANKED_PHOTOS = 32  # for finding the sensitive layers
SENSITIVE = (2, 5, 10)  # layers left in float, one rung each
QAT_EPOCHS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """One way to INT8 and what came of it on the validation split.

    top1, drop, agreement: fractions, against the float network on the same photos. kept: names of the layers in float.
    """

    name: str
    top1: float
    drop: float
    agreement: float
    size_bytes: int
    latency_ms: float
    kept: tuple[str, ...] = ()

    def good(self, max_drop: float, min_agreement: float) -> bool:
        """Whether the loss is within `max_drop` and so many of the answers are the same."""
        return self.drop <= max_drop + 1e-9 and self.agreement >= min_agreement

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {**dataclasses.asdict(self), "kept": list(self.kept)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Climbed:
    """The rung that was kept, with its artifact and the network it was made from; all rungs tried, in order."""

    rung: Rung
    artifact: dict[str, bytes]
    net: Net
    rungs: list[Rung]


class NoRungError(HandlensError):
    """No rung of the ladder was good; `best` is what lost least, as `climb` would have given it."""

    def __init__(self, message: str, hint: str, best: Climbed) -> None:
        super().__init__(message, hint)
        self.best = best


def climb(
    source: Source,
    to: str,
    calibration: Photos,
    max_drop: float = 0.005,
    *,
    num_calibration: int = CALIBRATION_PHOTOS,
    reduce_range: bool = False,
    threads: int = 0,
    tried: Callable[[Rung], None] = lambda rung: None,
    progress: Progress | None = None,
) -> Climbed:
    """Try rung after rung until one is good on the validation split; `tried` is told of each.

    Good is a loss of at most `max_drop` with 99 % of the answers the same; if no rung is, the one that agrees most is
    kept, if it has 98 %.

    The rungs: static quantisation with per-channel weights and ranges by min-max, then by each better observer; the
    weights equalised and their biases corrected; the most sensitive layers left in float; quantisation-aware training.
    max_drop is a fraction (0.005: half a point of top-1). Raises NoRungError, naming the best, when none is good, and
    HandlensError for a target without INT8 and for calibration photos that do not fit.
    """
    if to not in TARGETS:
        raise HandlensError(
            f"handlens makes no INT8 file for {to}", f"choose --to {' or '.join(TARGETS)}, or --float16"
        )
    images = calibration_images(calibration, source, num_calibration)
    validation = source.splits["validation"]
    done: list[Rung] = []
    best: Climbed | None = None
    enough: Climbed | None = None
    for name, net, kept, make in _rungs(source, to, images, reduce_range, progress, done):
        artifact = make()
        exported = job.classifier(source, artifact, to, "int8", threads)
        assert exported is not None
        found = parity.compare(source.reference, exported, validation, named(progress, name))
        rung = Rung(
            name=name,
            top1=found.top1,
            drop=found.drop,
            agreement=found.agreement,
            size_bytes=sum(map(len, artifact.values())),
            latency_ms=job.latency(exported, threads)["median_ms"],
            kept=kept,
        )
        done.append(rung)
        tried(rung)
        climbed = Climbed(rung=rung, artifact=artifact, net=net, rungs=done)
        if best is None or _best(done) == len(done) - 1:
            best = climbed
        if rung.good(max_drop, SURE_AGREEMENT):
            return climbed
        if rung.good(max_drop, MIN_AGREEMENT) and (enough is None or rung.agreement > enough.rung.agreement):
            enough = climbed
    if enough is not None:
        return enough
    assert best is not None
    raise NoRungError(
        f"no way to INT8 for {to} stayed within {100 * max_drop:g} points of top-1 with {MIN_AGREEMENT:.0%} of the "
        f"answers the same; the best, {best.rung.name!r}, loses {100 * best.rung.drop:.1f} points and agrees on "
        f"{best.rung.agreement:.1%}",
        "allow more with --max-drop, or use --float16",
        best,
    )


Try = tuple[str, Net, tuple[str, ...], Callable[[], dict[str, bytes]]]
"""A rung's name, the network it starts from, the layers left in float, and what makes its artifact."""


def _rungs(
    source: Source, to: str, images: np.ndarray, reduce_range: bool, progress: Progress | None, done: Sequence[Rung]
) -> Iterator[Try]:
    """The rungs in order; a later one builds on what the earlier ones, in `done` by then, have shown."""
    target = importlib.import_module(f"handlens.compress.{to}")
    contract = source.checkpoint.preprocess

    def quantizer(net: Net) -> Quantize:
        extra = {"reduce_range": True} if reduce_range else {}
        found: Quantize = target.quantizer(net, contract, source.facts, images, **extra)
        return found

    folded = source.folded
    plain = quantizer(folded)
    observers: Sequence[Observer] = target.OBSERVERS
    for observer in observers:
        yield f"per channel, {observer}", folded, (), functools.partial(plain, observer)
    observer = observers[_best(done)]

    from handlens.compress import qat, repair, sensitivity

    inputs = _inputs(images[:RANKED_PHOTOS], contract)
    repaired = repair.correct_bias(repair.equalise(folded), inputs)
    again = quantizer(repaired)
    yield f"equalised and bias corrected, {observer}", repaired, (), functools.partial(again, observer)
    if _best(done) == len(done) - 1:
        folded, plain = repaired, again

    ranked = [name for name, _ in sensitivity.rank(folded, inputs)]
    for count in SENSITIVE:
        kept = tuple(ranked[:count])
        yield f"{count} layers in float, {observer}", folded, kept, functools.partial(plain, observer, kept)

    parts = source.splits
    trained = fold_batch_norm(
        qat.train(
            source.checkpoint.net,
            parts["train"],
            parts["validation"],
            contract,
            epochs=QAT_EPOCHS,
            progress=named(progress, "quantisation-aware training"),
        )
    )
    after = quantizer(trained)
    yield f"quantisation-aware training, {observer}", trained, (), functools.partial(after, observer)
    kept = tuple(ranked[: SENSITIVE[-1]])
    yield f"the same, {len(kept)} layers in float", trained, kept, functools.partial(after, observer, kept)


def _best(done: Sequence[Rung]) -> int:
    """Index of the rung that lost least, the more agreeing of equals."""
    return min(range(len(done)), key=lambda index: (done[index].drop, -done[index].agreement))


def _inputs(images: np.ndarray, preprocess: Preprocess) -> Any:
    import torch

    return torch.from_numpy(preprocess.normalise(images))


def calibration_images(photos: Photos, source: Source, count: int) -> np.ndarray:
    """`count` photos or all, as many of each class as there are, through the pixel contract: uint8 (N, H, W, 3).

    None of them is of the test split. Raises HandlensError when photos of a class are missing, or there are none.
    """
    classes = source.checkpoint.classes
    wanted = photos.as_classes(classes) if photos.classes != classes else photos
    counts = wanted.counts()
    if missing := [name for name, number in zip(classes, counts, strict=True) if not number]:
        raise HandlensError(
            f"the calibration photos have none of {', '.join(missing)}",
            "INT8 ranges must be seen on photos of every class: give a folder with all of them",
        )
    each = [list(np.flatnonzero(wanted.labels == label)) for label in range(len(classes))]
    random = np.random.default_rng(0)
    shuffled = [list(random.permutation(own)) for own in each]
    chosen: list[int] = []
    for rank in range(max(map(len, shuffled))):
        chosen += [int(own[rank]) for own in shuffled if rank < len(own)]
    picked = wanted.select(sorted(chosen[:count]))
    return np.concatenate([images for images, _ in photos_room.batches(picked, source.checkpoint.preprocess, 32)])
