"""What becomes of an artifact: the gate on held-out photos, golden answers, the card, and the bundle on the disk."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import handlens
from handlens import bundle, cores, evaluate, export, files
from handlens import photos as photos_room
from handlens.checkpoint import Checkpoint
from handlens.cost.latency import measure, processor
from handlens.errors import HandlensError, PhotoError, counted, quoted
from handlens.evaluate import Scores
from handlens.evaluate.unknown import Rejection
from handlens.export import parity
from handlens.export.converting import versions
from handlens.export.exchange import exchanged
from handlens.nets import Net
from handlens.photos import Photos
from handlens.run import MANY, Classifier, torch_runtime
from handlens.run.artifact import no_facts
from handlens.run.bundles import ROUNDED_MARGIN, TOLERANCE, compare, runtime_of

_INSIDE = (".onnx", ".tflite", ".pte", ".xml", ".bin", ".mlpackage")  # endings of what lies in a bundle
GOLDEN = 8  # photos at most, one of each class first
AGREEMENT = 0.98  # of test photos that a bfloat16 file is to answer as the network does, as INT8 of validation
LATENCY_RUNS = 50
TURNS = 5  # in which an INT8 or bfloat16 file and its float one are measured

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""


def named(progress: Progress | None, label: str) -> Callable[[int, int], None] | None:
    """The `progress` of one step of several: (done, total) of the one called `label`."""
    return functools.partial(progress, label) if progress else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What is exported: a run's checkpoint, its network as it answers photos, and the run's own splits.

    name, data: what the run is called, and the photos that it was trained on.
    """

    name: str
    data: str
    checkpoint: Checkpoint
    splits: Mapping[str, Photos]
    folded: Net
    reference: Classifier
    _float32: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint, splits: Mapping[str, Photos], data: str = "") -> Source:
        """From a checkpoint and the splits of its run, labelled in the checkpoint's classes."""
        net, contract = checkpoint.net, checkpoint.preprocess
        return cls(
            name=name,
            data=data,
            checkpoint=checkpoint,
            splits=splits,
            folded=export.folded(net),
            reference=Classifier(
                classes=checkpoint.classes,
                preprocess=contract,
                infer=torch_runtime.predictor(net, contract, "cpu"),
                net=checkpoint.name,
            ),
        )

    @property
    def facts(self) -> str:
        """What every artifact carries inside itself."""
        return bundle.facts(self.checkpoint.name, self.checkpoint.classes, self.checkpoint.preprocess)

    def float32(self, to: str, net: Net | None = None) -> dict[str, bytes]:
        """The float artifact of the folded network, made once, or of another `net` with the same layers.

        The latter is the former with other weights where the files hold each weight as it is.
        """
        contract = self.checkpoint.preprocess
        if net is not None and net is not self.folded:
            alike = exchanged(self.float32(to), self.folded, net)
            return alike or export.convert(net, contract, to, self.facts)
        if to not in self._float32:
            self._float32[to] = export.convert(self.folded, contract, to, self.facts)
        return self._float32[to]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """A bundle that passed its gate. parity is None where the runtime cannot run on this machine (Core ML)."""

    path: Path
    bundle: bundle.Bundle
    parity: parity.Parity | None

    def to_dict(self) -> dict[str, Any]:
        """The card and the gate's figures as JSON-ready values."""
        return {"bundle": str(self.path), **self.bundle.card}


def check_out(out: str | os.PathLike[str]) -> Path:
    """`out` as a path that does not exist yet and can be made. Raises HandlensError otherwise, before any work."""
    if os.path.lexists(out):
        raise HandlensError(f"{out} exists already", "choose another --out or remove it")
    if Path(out).suffix.lower() in _INSIDE:
        raise HandlensError(
            f"{out} is the name of a network's file, which lies in a bundle with what belongs to it",
            f"name it {quoted(Path(out).with_suffix('.zip').name)}, or a folder {quoted(Path(out).stem)}",
        )
    files.check_place(out)
    return Path(out)


def finish(
    source: Source,
    artifact: Mapping[str, bytes],
    to: str,
    precision: str,
    out: str | os.PathLike[str],
    *,
    net: Net | None = None,
    rungs: list[dict[str, Any]] | None = None,
    max_drop: float = 0.005,
    threads: int = 0,
    licence: str = "",
    progress: Progress | None = None,
) -> Exported:
    """Put an artifact through the gate on the test split, and write the bundle if it passes.

    `net` is what the artifact was made from where that is not the folded network; `rungs` the ladder's table. The
    golden answers are those of the checkpoint's own network. Raises HandlensError, and writes nothing, when the file
    answers otherwise than the network (float), or carries other facts than it was given.
    """
    out = check_out(out)
    test = source.splits["test"]
    exported = classifier(source, artifact, to, precision, threads)
    found: parity.Parity | None = None
    if exported is not None:
        found = parity.compare(
            source.reference,
            exported,
            test,
            named(progress, "checking parity"),
        )
        if precision not in TOLERANCE:
            _judge(found, max_drop)
        again = export.runner(to, threads)
        written = "float32" if precision == "int8" else precision
        parity.gate(
            found,
            source.reference,
            exported,
            net or source.folded,
            test,
            lambda probe, contract: again(export.convert(probe, contract, to, precision=written)),
        )
        if source.checkpoint.rejection and precision in TOLERANCE:
            _judge_unknown(found, Rejection(**source.checkpoint.rejection))
        _judge_many(exported, found, test, named(progress, "checking many at once"))
    shipped = bundle.Bundle(
        runtime=to,
        precision=precision,
        artifact=artifact,
        net=source.checkpoint.name,
        classes=source.checkpoint.classes,
        preprocess=source.checkpoint.preprocess,
        card=card(source, artifact, to, precision, exported, found, rungs, threads, licence),
        calibration=source.checkpoint.calibration,
        rejection=source.checkpoint.rejection,
    )
    shipped = dataclasses.replace(shipped, golden=golden(source, exported, shipped))
    bundle.write(out, shipped)
    return Exported(path=out, bundle=shipped, parity=found)


_ROUNDED = {  # what a precision is called, and how to go on without it
    "int8": ("INT8", "calibrate with other photos, or leave out --int8"),
    "bfloat16": ("bfloat16", "leave out --bfloat16"),
}


def _judge(found: parity.Parity, max_drop: float) -> None:
    """INT8 and bfloat16 round on purpose: they are held to accuracy, not to equal probabilities.

    bfloat16, which has no ladder to choose by answers, gives the network's to AGREEMENT of the photos, or all but one.
    """
    name, leave_out = _ROUNDED[found.precision]
    if broken := int((found.guessed < 0).sum()):
        raise HandlensError(
            f"the {name} file's answers to {broken} of {counted(len(found.paths), 'test photo')} are no numbers "
            f"({_first(np.flatnonzero(found.guessed < 0), found)}), and it was not kept",
            leave_out,
        )
    allowed = max(max_drop, 1.96 * found.drop_standard_error)
    if found.drop > allowed + 1e-9:  # as much as is allowed is: 0.92 less 0.9 is more than 0.02
        raise HandlensError(
            f"on {counted(len(found.paths), 'test photo')} the {name} file is {100 * found.drop:.1f} points of top-1 "
            f"below the network, where {100 * allowed:.1f} are allowed, and was not kept; right before and wrong now: "
            f"{parity.told(found.lost())}",
            "calibrate with more photos, or allow more with --max-drop" if found.precision == "int8" else leave_out,
        )
    other = int((found.guessed != found.expected.argmax(1)).sum())
    if found.precision == "bfloat16" and other > max(1, (1 - AGREEMENT) * len(found.paths)):
        raise HandlensError(
            f"the bfloat16 file answers {other} of {counted(len(found.paths), 'test photo')} otherwise than the "
            f"network, where {1 - AGREEMENT:.0%} may be, and was not kept",
            leave_out,
        )


def _judge_many(
    exported: Classifier, found: parity.Parity, test: Photos, progress: Callable[[int, int], None] | None
) -> None:
    """Raise HandlensError where the photos of a heap, which threads share, are answered otherwise than one by one.

    That is the way of `handlens predict` for many photos, on a network started anew for it: `Classifier.start_shared`.
    In INT8 and bfloat16 a few may be, as a batch's size decides how some layers round.
    """
    if exported.start_shared is None:
        return
    heap = [test.path(index) for index in range(len(test))] * -(-MANY // len(test))
    allowed = TOLERANCE.get(exported.precision, ROUNDED_MARGIN)
    other = []
    for index, (_, guesses) in enumerate(exported.predict_many(heap, 1, progress=progress)):
        if isinstance(guesses, PhotoError):
            raise guesses
        alone, best = found.got[index % len(test)], guesses[0]
        if abs(alone[found.classes.index(best.name)] - best.probability) > allowed:
            other.append(index % len(test))
    if len(other) > (0 if exported.precision in TOLERANCE else max(1, (1 - AGREEMENT) * len(heap))):
        raise HandlensError(
            f"asked many photos at once, the exported file answers {len(set(other))} of "
            f"{counted(len(test), 'test photo')} otherwise than one by one ({_first(np.unique(other), found)}), and "
            "was not kept",
            "try another --to, and report it with the versions of `handlens env`",
        )


def _judge_unknown(found: parity.Parity, rejection: Rejection) -> None:
    if len(other := found.unknown_otherwise(rejection)):
        raise HandlensError(
            f"the exported file calls {len(other)} of {counted(len(found.paths), 'test photo')} unknown, or known, "
            f"otherwise than the network ({_first(other, found)}), and was not kept",
            "try another --to, and report it with the versions of `handlens env`",
        )


def _first(indices: np.ndarray, found: parity.Parity) -> str:
    """The first of these photos, by name."""
    more = " ..." if len(indices) > parity.SHOWN else ""
    return ", ".join(found.paths[index] for index in indices[: parity.SHOWN]) + more


def classifier(
    source: Source, artifact: Mapping[str, bytes], to: str, precision: str, threads: int = 0
) -> Classifier | None:
    """The artifact on its runtime, with the classes and the contract that it carries; None where it cannot be run."""
    if to == "coreml":
        return None
    module = runtime_of(to)
    infer, facts = module.start(artifact, threads)
    start_shared = getattr(module, "start_shared", None)
    if facts is None:
        raise no_facts(module.FILE)
    classes, contract = read_facts(facts)
    return Classifier(
        classes=classes,
        preprocess=contract,
        infer=infer,
        net=source.checkpoint.name,
        runtime=to,
        precision=precision,
        start_shared=(lambda: start_shared(artifact)[0]) if start_shared else None,
    )


def read_facts(facts: str) -> tuple[tuple[str, ...], Any]:
    """The classes and the pixel contract in the facts that an artifact carries."""
    import json

    from handlens.preprocess import Preprocess

    values = json.loads(facts)
    return tuple(values["classes"]), Preprocess.from_dict(values["preprocess"])


def golden(source: Source, exported: Classifier | None, shipped: bundle.Bundle) -> tuple[bundle.Golden, ...]:
    """Test photos without their metadata, one of each class in turn, with the network's own answers.

    INT8 and bfloat16 may answer a few test photos otherwise: those whose golden answer the exported file does not give
    here would be a fault wherever the bundle is checked, and are passed over. Raises HandlensError where none is left,
    and for a float file that does not give one.
    """
    test = source.splits["test"]
    by_class = [np.flatnonzero(test.labels == label) for label in range(len(test.classes))]
    longest = max(map(len, by_class))
    found: list[bundle.Golden] = []
    for index in (own[rank] for rank in range(longest) for own in by_class if rank < len(own)):
        photo = bundle.strip(test.path(int(index)))
        image = source.reference.preprocess.load(photo)[None]
        probabilities = source.reference.predict_batch(image)[0]
        one = bundle.Golden(photo=photo, probabilities=tuple(map(float, probabilities)))
        answer = compare("", one, exported.infer(image)[0][0], shipped) if exported else None
        if answer is None or answer.ok:
            found.append(one)
        elif shipped.precision in TOLERANCE:
            raise HandlensError(
                f"of {test.paths[index]}, made smaller, the exported file says {answer.answered} "
                f"{answer.answered_p:.4f} and the network {answer.expected} {answer.expected_p:.4f} (probabilities "
                f"differ by {answer.difference:.2g}), and it was not kept",
                "try another --to, and report it with the versions of `handlens env`",
            )
        if len(found) == GOLDEN:
            break
    if len(test) and not found:
        raise HandlensError(
            "the exported file answers no test photo as the network does, once it is made smaller, and was not kept",
            "try another --to or precision",
        )
    return tuple(found)


def card(
    source: Source,
    artifact: Mapping[str, bytes],
    to: str,
    precision: str,
    exported: Classifier | None,
    found: parity.Parity | None,
    rungs: list[dict[str, Any]] | None,
    threads: int,
    licence: str,
) -> dict[str, Any]:
    """What a reader of the bundle should know of it, all of it measured or written down, none of it typed in.

    "parity" is None where the file was never run, which no machine but Apple's does with Core ML's.
    """
    checkpoint = source.checkpoint
    facts: dict[str, Any] = {
        "run": source.name,
        "net": checkpoint.name,
        "arguments": checkpoint.arguments,
        "data": source.data,
        "splits": {name: len(part) for name, part in source.splits.items()},
        "precision": precision,
        "size_bytes": sum(map(len, artifact.values())),
        "weights_float32_bytes": 4 * num_weights(source.folded),
        "date": datetime.date.today().isoformat(),
        "handlens_version": handlens.__version__,
        "versions": versions(to, int8=precision == "int8"),
        "processor": processor(),
        "licence": licence or "not stated: ask whose photos and pretrained weights these are",
    }
    if exported is None or found is None:  # never run: what is known is known of the network alone
        facts["parity"] = None
        if len(test := source.splits["test"]):
            facts["test"] = {"network": _top1(evaluate.score(source.reference.infer, test, checkpoint.preprocess))}
    else:
        scenes = photos_room.examine(source.splits["test"]).scenes(found.paths)
        both = {
            name: Scores(
                probabilities=answers, labels=found.labels, classes=found.classes, paths=found.paths, scenes=scenes
            )
            for name, answers in (("network", found.expected), ("exported", found.got))
        }
        facts["test"] = {name: _top1(scores) for name, scores in both.items()}
        facts["parity"] = found.to_dict()
        if checkpoint.rejection:
            other = found.unknown_otherwise(Rejection(**checkpoint.rejection))
            facts["parity"]["unknown_alike"] = 1 - len(other) / len(found.paths)
        if precision not in TOLERANCE:
            facts |= beside_float(source, exported, threads)
        else:
            facts["latency"] = latency(exported, threads)
    if rungs is not None:
        facts["ladder"] = rungs
    return facts


def num_weights(net: Net) -> int:
    """How many numbers of a network its exported file holds: auxiliary classifiers, for training, are not in it."""
    left_out = {parameter for head in net.auxiliary() for parameter in head.parameters()}
    return sum(parameter.numel() for parameter in net.parameters() if parameter not in left_out)


def _top1(scores: Scores) -> dict[str, Any]:
    return {"top1": scores.top1, "top1_ci95": list(scores.top1_ci95)}


def latency(exported: Classifier, threads: int, runs: int = LATENCY_RUNS) -> dict[str, Any]:
    """Of one photo that is decoded already, on this machine. threads: what the runtime was given, 0 for all cores."""
    px = exported.preprocess.image_px
    image = np.random.default_rng(0).integers(0, 256, (1, px, px, 3), dtype=np.uint8)
    return measure(lambda: exported.infer(image), threads or cores.available(), runs)._asdict()


def beside_float(source: Source, exported: Classifier, threads: int) -> dict[str, Any]:
    """{"latency": of an INT8 or bfloat16 file, "float32": {size_bytes, latency} of the float file in its place}.

    Both are measured by turns, so that a slow moment of the machine slows both; of the turns the middle one is told.
    """
    to = exported.runtime
    artifact = source.float32(to)
    plain = classifier(source, artifact, to, "float32", threads)
    assert plain is not None
    turns = [[latency(each, threads, LATENCY_RUNS // TURNS) for each in (exported, plain)] for _ in range(TURNS)]
    own, other = (
        sorted(each, key=lambda turn: float(turn["median_ms"]))[TURNS // 2] for each in zip(*turns, strict=True)
    )
    return {"latency": own, "float32": {"size_bytes": sum(map(len, artifact.values())), "latency": other}}
