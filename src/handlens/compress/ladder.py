"""The INT8 ladder: ever more is done to a network until it answers as well in 8 bits as it did in 32."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from handlens import photos as photos_room
from handlens.compress.observe import Observer, Quantize
from handlens.errors import HandlensError, NotHereError
from handlens.evaluate.metrics import effective, wilson
from handlens.export import folded, job, parity
from handlens.export.job import Progress, Source, named
from handlens.nets import Net
from handlens.photos import Photos
from handlens.preprocess import Preprocess
from handlens.run.artifact import Infer

TARGETS = ("onnx", "litert", "executorch", "openvino")
MIN_AGREEMENT = 0.98  # of first guesses with the float network's, beside the loss of accuracy
SURE_AGREEMENT = 0.99  # where the ladder stops: a rung is chosen on these photos, and does a little worse on others
CALIBRATION_PHOTOS = 128
CORRECTING_PHOTOS = 64  # for correcting biases
RANKED_PHOTOS = 32  # for finding the sensitive layers
SENSITIVE = (2, 5, 10)  # layers left in float, one rung each
MANY_LAYERS = 20  # left in float when all that helped is done together
SIZE_SHARE = 0.30  # of the float file's size, which layers in float are chosen to keep within
QAT_EPOCHS = 3
WEIGHTS_ONLY = "weights only"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """One way to INT8 and what came of it on the validation split, each photo in four `views`.

    top1, drop, agreement: fractions, against the float network on the same views. top1_ci95: Wilson's 95 % interval, a
    photo's views counted as one. divergence: of the probabilities from the float ones, in nats. kept: names of the
    layers in float. failed: why there is no file of it, or "". allowed_drop, wanted_agreement: what ends the ladder.
    """

    name: str
    top1: float
    drop: float
    agreement: float
    size_bytes: int
    latency_ms: float
    divergence: float = math.inf
    kept: tuple[str, ...] = ()
    failed: str = ""
    top1_ci95: tuple[float, float] | None = None
    allowed_drop: float = 0.005
    wanted_agreement: float = SURE_AGREEMENT

    def good(self, max_drop: float, min_agreement: float) -> bool:
        """Whether the loss is within `max_drop` and so many of the answers are the same."""
        return self.drop <= max_drop + 1e-9 and self.agreement >= min_agreement - 1e-9

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        divergence = self.divergence if math.isfinite(self.divergence) else None
        return {**dataclasses.asdict(self), "divergence": divergence, "kept": list(self.kept)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Climbed:
    """The rung that was kept, with its artifact and the network it was made from; all rungs tried, in order."""

    rung: Rung
    artifact: dict[str, bytes]
    net: Net
    rungs: list[Rung]


class NoRungError(HandlensError):
    """No rung of the ladder was good; `best` is what came nearest, as `climb` would have given it.

    Nearest is what loses least, and of those that lose no more than is allowed what agrees most.
    """

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
    weights_only: bool = False,
    reduce_range: bool = False,
    threads: int = 0,
    tried: Callable[[Rung], None] = lambda rung: None,
    progress: Progress | None = None,
) -> Climbed:
    """Try rung after rung until one is good on the validation split, in four `views`; `tried` is told of each.

    Good is a loss of at most `max_drop` with 99 % of the answers the same, or all but one; if no rung is, of those that
    lose no more and have 98 % the one that agrees most is kept.

    The rungs: static quantisation with per-channel weights and ranges by min-max, then by each better observer; the
    weights equalised and their biases corrected; the most sensitive layers left in float; of all these what changed
    the probabilities least, together; quantisation-aware training; and where none of these was good at all, the
    weights alone in eight bits, which ExecuTorch cannot express. With `weights_only` the last is the only one.
    max_drop is a fraction (0.005: half a point of top-1); unless it is 0, one answer may always be lost. Raises
    NoRungError, naming the best, when none is good, and HandlensError for a target without INT8 and for calibration
    photos that do not fit.
    """
    check_target(to, weights_only)
    images = calibration_images(calibration, source, num_calibration)
    reference = dataclasses.replace(source.reference, infer=_remembered(source.reference.infer))
    validation = source.splits["validation"]
    asked = functools.partial(views, mirrors=_mirrors(source))
    # Of few photos one answer is more than a hundredth: one may always differ, and be lost where any may.
    answers = len(asked(images[:1])) * max(1, len(validation))
    trials = effective(photos_room.examine(validation).scenes(validation.paths))  # in the intervals
    sure, least = (min(share, 1 - 1 / answers) for share in (SURE_AGREEMENT, MIN_AGREEMENT))
    allowed = max(max_drop, 1 / answers) if max_drop else 0.0

    def lacking(rung: Rung) -> tuple[float, float]:
        return max(rung.drop, allowed), -rung.agreement

    done: list[Rung] = []
    best: Climbed | None = None
    enough: Climbed | None = None
    for name, net, kept, make in _rungs(source, to, images, weights_only, reduce_range, progress, done):
        if name == WEIGHTS_ONLY and enough is not None:  # which computes in integers
            break
        if progress:  # converting takes seconds, before anything can be counted
            progress(name, 0, len(validation))
        try:
            artifact = make()
        except NotHereError:
            raise
        except HandlensError as error:
            if best is None:
                raise
            rung = Rung(
                name=name,
                top1=0.0,
                drop=1.0,
                agreement=0.0,
                size_bytes=0,
                latency_ms=0.0,
                kept=kept,
                failed=str(error),
                allowed_drop=allowed,
                wanted_agreement=sure,
            )
            done.append(rung)
            tried(rung)
            continue
        exported = job.classifier(source, artifact, to, "int8", threads)
        assert exported is not None
        found = parity.compare(reference, exported, validation, named(progress, name), views=asked)
        rung = Rung(
            name=name,
            top1=found.top1,
            drop=found.drop,
            agreement=found.agreement,
            size_bytes=sum(map(len, artifact.values())),
            latency_ms=job.latency(exported, threads)["median_ms"],
            divergence=found.divergence,
            kept=kept,
            top1_ci95=wilson(found.top1 * trials, trials),
            allowed_drop=allowed,
            wanted_agreement=sure,
        )
        done.append(rung)
        tried(rung)
        climbed = Climbed(rung=rung, artifact=artifact, net=net, rungs=done)
        if best is None or lacking(rung) < lacking(best.rung):
            best = climbed
        if rung.good(allowed, sure):
            return climbed
        if rung.good(allowed, least) and (enough is None or rung.agreement > enough.rung.agreement):
            enough = climbed
    if enough is not None:
        return enough
    assert best is not None
    more_lost = any(rung.good(math.inf, least) for rung in done)
    ways = [
        *(["allow more with --max-drop"] if more_lost else []),
        *(["leave out --weights-only"] if weights_only else []),
        "leave out --int8",
        "use another --to" if to == "executorch" else "use --float16",
    ]
    one = f" (one answer of {answers})" if allowed > max_drop else ""
    moved = f"{'gains' if best.rung.drop < 0 else 'loses'} {100 * abs(best.rung.drop):.2f} points"
    raise NoRungError(
        f"no way to INT8 for {to} stayed within {round(100 * allowed, 2):g} points of top-1{one} with "
        f"{100 * least:.3g}% of the answers the same; the best, {best.rung.name!r}, {moved} and agrees on "
        f"{best.rung.agreement:.1%}",
        f"{', '.join(ways[:-1])}, or {ways[-1]}",
        best,
    )


def check_target(to: str, weights_only: bool = False) -> None:
    """Raise HandlensError for a target that handlens makes no INT8 file for, or none by the weights alone."""
    if to not in TARGETS:
        raise HandlensError(
            f"handlens makes no INT8 file for {to}", f"choose --to {' or '.join(TARGETS)}, or --float16"
        )
    if weights_only and to == "executorch":
        raise HandlensError(
            "ExecuTorch has no file with the weights alone in eight bits",
            "leave out --weights-only, or --to executorch",
        )


def views(images: np.ndarray, mirrors: bool = True) -> list[np.ndarray]:
    """Of uint8 (B, H, W, 3): as they are, mirrored, and each of these moved a little, edges reflected.

    Without `mirrors`, where left and right matter: as they are, and moved three ways. A rung changes few of the
    answers, and a split has few photos: with four times as many questions the luck of single photos decides less. Which
    label is right is not changed by them.
    """
    height, width = images.shape[1:3]
    down, right = max(1, height // 16), max(1, width // 16)

    def moved(photos: np.ndarray, down: int, right: int) -> np.ndarray:
        edges = (max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0))
        padded = np.pad(photos, ((0, 0), *edges, (0, 0)), mode="reflect")
        return padded[:, edges[0][1] :, edges[1][1] :][:, :height, :width]

    other = images[:, :, ::-1] if mirrors else moved(images, down, -right)
    last = moved(other if mirrors else images, -down, -right)
    return [np.ascontiguousarray(view) for view in (images, other, moved(images, down, right), last)]


def _mirrors(source: Source) -> bool:
    """Whether a mirrored photo has the class of the photo: what the training took it for."""
    return bool(source.checkpoint.recipe.get("flip", True))


def _remembered(infer: Infer) -> Infer:
    """`infer`, which computes each batch once: the float network is asked the same at every rung."""
    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def answer(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = hashlib.sha256(photos.tobytes()).digest()
        if key not in known:
            known[key] = infer(photos)
        return known[key]

    return answer


Try = tuple[str, Net, tuple[str, ...], Callable[[], dict[str, bytes]]]
"""A rung's name, the network it starts from, the layers left in float, and what makes its artifact."""


def _rungs(
    source: Source,
    to: str,
    images: np.ndarray,
    weights_only: bool,
    reduce_range: bool,
    progress: Progress | None,
    done: Sequence[Rung],
) -> Iterator[Try]:
    """The rungs in order; a later one builds on what the earlier ones, in `done` by then, have shown."""
    target = importlib.import_module(f"handlens.compress.{to}")
    contract = source.checkpoint.preprocess

    def quantizer(net: Net) -> Quantize:
        extra: dict[str, Any] = {"reduce_range": True} if reduce_range else {}
        if to != "executorch":  # which quantises the program, not a file
            extra["plain"] = functools.partial(source.float32, to, net)
        found: Quantize = target.quantizer(net, contract, source.facts, images, **extra)
        return found

    unchanged = source.folded
    plain = quantizer(unchanged)
    last = WEIGHTS_ONLY, unchanged, (), functools.partial(plain, None)
    if weights_only:
        yield last
        return
    observers: Sequence[Observer] = target.OBSERVERS
    for observer in observers:
        yield f"per channel, {observer}", unchanged, (), functools.partial(plain, observer)
    observer = observers[_best(done)]

    from handlens.compress import qat, repair, sensitivity

    inputs = _inputs(images[:CORRECTING_PHOTOS], contract)
    equal = repair.equalise(unchanged)
    repaired = repair.correct_bias(equal, inputs)
    yield f"equalised and bias corrected, {observer}", repaired, (), functools.partial(quantizer(repaired), observer)
    corrected = _best(done) == len(done) - 1

    @functools.cache
    def ranking(corrected: bool) -> tuple[str, ...]:
        """The most sensitive first, without those that would make the file large; all of them where each would."""
        judged = equal if corrected else unchanged
        room_bytes = SIZE_SHARE * 4 * job.num_weights(judged) - done[_best(done)].size_bytes
        left = room_bytes / 3  # weights: in float each takes three bytes more
        small: list[str] = []
        large: list[str] = []
        for name, _ in sensitivity.rank(judged, inputs[:RANKED_PHOTOS]):
            if not (size := _weights(judged, name)):  # curves alone are in float already
                continue
            (small if size <= left else large).append(name)
            left -= size if size <= left else 0
        return tuple(small or large)

    ranked = ranking(corrected)
    for count in sorted({min(count, len(ranked)) for count in SENSITIVE}):
        kept = ranked[:count]
        # What stays in float needs no correction, and what follows it another one.
        net = repair.correct_bias(equal, inputs, kept) if corrected else unchanged
        start = quantizer(net) if corrected else plain
        yield f"{count} layers in float, {observer}", net, kept, functools.partial(start, observer, kept)

    # Together what helped: top-1 of few photos hardly tells rungs apart, the divergence of the probabilities does.
    tries = done[: len(observers)]
    nearest = min(range(len(tries)), key=lambda index: tries[index].divergence)
    before, after_repair = tries[nearest].divergence, done[len(observers)].divergence
    if observers[nearest] != observer:
        observer = observers[nearest]
        make = functools.partial(quantizer(repaired), observer)
        yield f"equalised and bias corrected, {observer}", repaired, (), make
        after_repair = done[-1].divergence
    corrected = after_repair < before
    kept = ranking(corrected)[:MANY_LAYERS]
    net = repair.correct_bias(equal, inputs, kept) if corrected else unchanged
    make = functools.partial(quantizer(net) if corrected else plain, observer, kept)
    name = f"{len(kept)} layers in float, {observer}"
    yield f"{name}, equalised and bias corrected" if corrected else name, net, kept, make

    parts = source.splits
    trained = folded(
        qat.train(
            source.checkpoint.net,
            parts["train"],
            parts["validation"],
            contract,
            epochs=QAT_EPOCHS,
            flip=_mirrors(source),
            progress=named(progress, "quantisation-aware training"),
        )
    )
    after = quantizer(trained)
    yield f"quantisation-aware training, {observer}", trained, (), functools.partial(after, observer)
    yield (
        f"quantisation-aware training, {len(kept)} layers in float, {observer}",
        trained,
        kept,
        functools.partial(after, observer, kept),
    )
    yield last


def _weights(net: Net, name: str) -> int:
    """How many numbers a module of the network has."""
    return sum(parameter.numel() for parameter in net.get_submodule(name).parameters())


def _best(done: Sequence[Rung]) -> int:
    """Index of the rung that lost least, the more agreeing of equals."""
    return min(range(len(done)), key=lambda index: (done[index].drop, -done[index].agreement))


def _inputs(images: np.ndarray, preprocess: Preprocess) -> Any:
    import torch

    return torch.from_numpy(preprocess.normalise(images))


def calibration_images(photos: Photos, source: Source, count: int) -> np.ndarray:
    """`count` photos or all, as many of each class as there are, through the pixel contract: uint8 (N, H, W, 3).

    At least one of each class, also where `count` is less. The classes take turns: the first few photos, which are all
    that some rungs look at, are of every class too. None of them is of the test split.
    Raises HandlensError when photos of a class are missing, or there are none.
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
    picked = wanted.select(chosen[: max(count, len(classes))])
    return np.concatenate([images for images, _ in photos_room.batches(picked, source.checkpoint.preprocess, 32)])
