"""`handlens evaluate`: how good is it, on photos that chose nothing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from handlens.cli.labelled import CHOSE_NOTHING, SPLITS, labelled, own_split, runs_split, scan

if TYPE_CHECKING:
    import numpy as np

    from handlens.cli.labelled import Chosen
    from handlens.evaluate import Scores
    from handlens.evaluate.nearest import Nearest
    from handlens.evaluate.sections import Section
    from handlens.photos import Photos
    from handlens.run import Classifier
    from handlens.train import Recipe
    from handlens.train.data import Data

Kind = Literal["run", "bundle", "weights"]  # what is evaluated: "weights" are a net's by name


def evaluate(
    run: str = typer.Argument(
        ..., metavar="RUN", help="A run's folder, a bundle, or a net's name together with --weights."
    ),
    photos: str = typer.Argument(
        "",
        metavar="PHOTOS",
        show_default=False,
        help="Photos with labels: a folder, a CSV or a published set. Without: the run's own; a bundle has none.",
    ),
    weights: str = typer.Option("", help="A weight file for the net named in place of a run, or `imagenet`."),
    split: str = typer.Option(
        "", help="train, validation, test or all. Default: test where there are splits, else all."
    ),
    report: Path | None = typer.Option(None, help="Write the report, one HTML file, here."),
    saliency: bool | None = typer.Option(
        None, "--saliency/--no-saliency", help="In the report: what speaks for the worst mistakes. [for a run]"
    ),
    nearest: bool | None = typer.Option(
        None, "--nearest/--no-nearest", help="In the report: the training photos most like them. [for a run]"
    ),
    unknown: Path | None = typer.Option(
        None, metavar="DIR", help="Photos of none of the classes: how many are taken for one."
    ),
    coverage: float | None = typer.Option(
        None,
        help="Sets of classes that hold the right one so often, such as 0.95; for a run, which has validation photos.",
    ),
    robustness: bool = typer.Option(
        False,
        "--robustness",
        help="Also blurred, dark, noisy ... photos, and phones' shapes by resize rule; takes long.",
    ),
    batch_size: int = typer.Option(32, min=1, help="Photos that go through the network at once."),
    threads: int = typer.Option(0, min=0, help="Threads that compute the network; 0: its runtime's choice."),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Score a trained classifier on labelled photos.

    Gives top-1 and, for more than five classes, top-5, both with their 95 % interval; precision, recall and F1 of
    each class; what is mixed up most; how far its probabilities are off; with --report also the confusion matrix and
    the worst mistakes, as pictures.

    \b
    Examples:
      handlens evaluate runs/flowers                                 the run's own test split
      handlens evaluate runs/flowers new-photos --report report.html
      handlens evaluate runs/flowers --report report.html --no-nearest
      handlens evaluate runs/flowers --unknown holiday --coverage 0.95
      handlens evaluate runs/flowers --robustness --json
      handlens evaluate flowers.zip new-photos --threads 2
      handlens evaluate mobilenet_v2 --weights v2.safetensors photos --json
    """
    from handlens import bundle, files
    from handlens import evaluate as room
    from handlens import photos as photos_room
    from handlens import run as run_room
    from handlens.cli import screen
    from handlens.errors import HandlensError
    from handlens.evaluate import conformal
    from handlens.evaluate import unknown as unknown_room
    from handlens.photos.split import contents

    kind: Kind = "weights" if weights else "bundle" if bundle.is_bundle(run) else "run"
    _refuse(kind, run, photos, split, report, saliency, nearest, coverage)
    room.check_installed(report=report is not None)  # what cannot be done is told before long work
    others = unknown_room.look(unknown) if unknown else None
    if report:
        files.check_place(report, ".html", ".htm")
    if weights:
        classifier, (chosen, how, left_out, relabelled) = _from_weights(run, weights, photos, split, threads)
    else:
        classifier = run_room.load(run, threads)
        chosen, how, left_out, relabelled = labelled(run, photos, split)
    chosen = chosen.as_classes(classifier.classes)
    if unknown and others:
        seen = photos_room.examine(chosen)
        known = {*seen.sha256.values(), *seen.pixels.values()}
        known |= set() if kind == "weights" else contents(Path(run, files.SPLIT))
        unknown_room.check_apart(unknown, others, known)
    if classifier.note:
        screen.note(classifier.note)
    num_seen, caution = None, ""
    if kind == "bundle":
        caution = "a bundle has no split: photos that it was trained on may be among these, and the figures may flatter"
    elif kind == "run":
        from handlens.train.seen import judged

        num_seen, caution = judged(Path(run), chosen, split, screen.progress, screen.note)
        how = how.removesuffix(CHOSE_NOTHING) if num_seen else how
    if caution:
        screen.note(caution)
    caution = "; ".join(filter(None, (caution, relabelled)))  # of which a note has told
    validation, too_few = None, ""
    if coverage is not None:
        validation = _validation(run, photos).as_classes(classifier.classes)
        try:
            conformal.check(coverage, len(validation))
        except HandlensError as error:  # no reason to withhold the rest
            validation, too_few = None, str(error)
            screen.note(too_few)
    with screen.progress("evaluating", len(chosen)) as update:
        scores = room.score(classifier.infer, chosen, classifier.preprocess, batch_size, update)
    unread, scores = scores.left_out, dataclasses.replace(scores, left_out=(*left_out, *scores.left_out))
    chosen = chosen.without([path for path, _ in unread])
    more = _confidence(kind, run, classifier, scores, unknown, validation, coverage, batch_size)
    note = "; ".join(filter(None, (classifier.note, too_few)))
    if robustness:
        from handlens.evaluate import robustness as robustness_room

        with screen.progress("harming photos") as update:
            more["robustness"] = robustness_room.measure(
                classifier.predict_batch, chosen, classifier.preprocess, batch_size, update
            )
    parts = _sections(more)
    if report:
        _report(
            report, kind, run, weights, photos, saliency, nearest, classifier, scores, chosen,
            split="; ".join(filter(None, (how, caution, note))), parts=parts,
        )  # fmt: skip
        screen.note(f"the report is {report}")
    if json:
        said = {"net": classifier.net, "split": how, "num_seen_in_training": num_seen, "caution": caution}
        said |= {"calibrated": classifier.calibrated, "note": note}
        screen.print_json(scores.to_dict() | said | more)
        return
    for path, reason in unread:
        screen.note(f"left out: {path}: {reason}")
    if scores.repetition:
        screen.note(scores.repetition)
    show(scores, how)
    for part in parts:
        screen.say(f"\n{part.heading}. {part.text}")
        screen.table("", part.header, part.rows)


def _refuse(
    kind: Kind,
    run: str,
    photos: str,
    split: str,
    report: Path | None,
    saliency: bool | None,
    nearest: bool | None,
    coverage: float | None,
) -> None:
    """Raise HandlensError where options do not go with one another, or with what is evaluated."""
    from handlens.errors import HandlensError, not_one_of, quoted
    from handlens.evaluate import conformal

    if split not in ("", "all", *SPLITS):
        raise not_one_of("--split", split, (*SPLITS, "all"))
    if not photos and kind == "bundle":
        raise HandlensError("a bundle has no photos to be evaluated on", f"handlens evaluate {quoted(run)} PHOTOS")
    if not photos and kind == "run" and split == "all":
        raise HandlensError("--split all needs photos", f"handlens evaluate {quoted(run)} PHOTOS --split all")
    if saliency and not report:
        raise HandlensError("--saliency is shown in the report", "add --report FILE")
    if saliency and kind == "bundle":
        raise HandlensError("a bundle gives answers, but no gradients for --saliency", "name the run it was made from")
    if nearest and not report:
        raise HandlensError("--nearest is shown in the report", "add --report FILE")
    if nearest and kind != "run":
        raise HandlensError("--nearest needs the photos of a training", "name a run that `handlens train` made")
    if coverage is not None and kind != "run":
        raise HandlensError(
            "--coverage is fitted on a run's validation photos", "name a run that `handlens train` made"
        )
    if coverage is not None:
        conformal.check(coverage)
    if coverage is not None and split == "validation":
        raise HandlensError("--coverage is fitted on the validation photos", "check it on others: leave out --split")


def _confidence(
    kind: Kind,
    run: str,
    classifier: Classifier,
    scores: Scores,
    outside: Path | None,
    validation: Photos | None,
    coverage: float | None,
    batch_size: int,
) -> dict[str, Any]:
    """What is found of unknown photos, and of sets of classes, where that is asked for or follows from the scores."""
    from handlens import evaluate as room
    from handlens.cli import screen
    from handlens.errors import HandlensError
    from handlens.evaluate import conformal, unknown

    found: dict[str, Any] = {"unknown": None, "coverage": None}
    rejection, pair, caution = classifier.rejection, None, ""
    if outside:
        with screen.progress("judging unknown photos") as update:
            given = unknown.answers(classifier.infer, classifier.preprocess, outside, update)
        for path, reason in given.left_out:
            screen.note(f"left out of the unknown photos: {path} {reason}")
        chose = _chose_threshold(run)
        others = [index for index, content in enumerate(given.contents) if content not in chose]
        if num_chose := len(given.contents) - len(others):
            these = f"{num_chose} of the {len(given.contents)} photos in {outside} chose the threshold in training"
            if not others:
                raise HandlensError(f"{these}, and none is left to judge by", "name a folder of other photos")
            screen.note(f"{these}: the others are judged")
        if not chose and rejection is not None and kind == "bundle":
            caution = "a bundle does not tell which photos chose its threshold: if some of these did, it flatters"
            screen.note(caution)
        pair = given.select(others).pair
        if rejection is None:
            caution = "no threshold came with it, so that `handlens predict` calls nothing unknown; this one is chosen "
            caution += "on the photos that it is judged on, and flatters"
            screen.note(caution)
            assert scores.logits is not None
            chosen = unknown.Rejection(kind=unknown.DEFAULT, threshold=0.0)
            own = chosen.scores(scores.probabilities, scores.logits)
            rejection = dataclasses.replace(chosen, threshold=unknown.threshold_of(own))
    if rejection:
        found["unknown"] = {
            **unknown.judge(rejection, scores, pair, caution),
            "calls": classifier.rejection is not None,
        }
    if coverage is not None and validation is not None:
        with screen.progress("validation photos", len(validation)) as update:
            known = room.score(classifier.infer, validation, classifier.preprocess, batch_size, update)
        found["coverage"] = conformal.judge(known, scores, coverage)
        found["coverage"]["sets"] = conformal.sets(scores, found["coverage"]["threshold"])
    return found


def _chose_threshold(run: str) -> frozenset[str]:
    """The SHA-256 of the photos of other things by which a run's threshold was chosen; none of a bundle."""
    from handlens import files

    stored = Path(run, files.UNKNOWN)
    return frozenset(files.read_json(stored).get("chose", ())) if stored.is_file() else frozenset()


def _validation(run: str, source: str) -> Photos:
    """A run's validation photos, where `source` may be its photos at a new place, or others."""
    from handlens.errors import HandlensError

    try:
        return runs_split(run, source, "validation", tell=False).photos
    except HandlensError:
        if not source:
            raise
        return runs_split(run, "", "validation", tell=False).photos


def _sections(found: dict[str, Any]) -> list[Section]:
    """Those of the findings that there are, as tables."""
    from handlens.evaluate import sections

    parts = [getattr(sections, name)(found[name]) for name in ("unknown", "coverage") if found[name]]
    return [*parts, *(sections.robustness(found["robustness"]) if "robustness" in found else ())]


def show(scores: Scores, how: str) -> None:
    """Print scores as a sentence and a table of the classes."""
    from handlens.cli import screen
    from handlens.errors import counted

    low, high = scores.top1_ci95
    photos = counted(scores.num_photos, "photo")
    screen.say(f"top-1 {scores.top1:.1%} (95 % interval {low:.1%} to {high:.1%}) on {photos}; {how}")
    if scores.top5 is not None and scores.top5_ci95 is not None:
        low, high = scores.top5_ci95
        screen.say(f"top-5 {scores.top5:.1%} (95 % interval {low:.1%} to {high:.1%})")
    lines = [
        (
            line["name"],
            *("–" if line[key] is None else f"{line[key]:.1%}" for key in ("precision", "recall", "f1")),
            line["support"],
        )
        for line in scores.per_class
    ]
    screen.table("", ("class", "precision", "recall", "F1", "photos"), lines)
    worst = "; ".join(f"{x['class']} for {x['taken_for']} ({x['num_photos']})" for x in scores.confusions(3))
    if worst:
        screen.say(f"mixed up most: {worst}")
    found = scores.calibration
    before = f", {found['before']['ece']:.1%} without calibration" if "before" in found else ""
    low, high = found["ece_ci95"]
    screen.say(
        f"calibration error {found['ece']:.1%} (95 % interval {low:.1%} to {high:.1%}; up to "
        f"{found['ece_by_chance']:.1%} by chance alone){before}"
    )


def _from_weights(net: str, weights: str, source: str, split: str, threads: int) -> tuple[Classifier, Chosen]:
    from handlens import run as run_room
    from handlens.cli import screen
    from handlens.errors import HandlensError

    if not source:
        raise HandlensError("with --weights there is no run whose photos could be used", "name a folder of photos")
    found = scan(source)
    with screen.progress("downloading") as update:
        classifier = run_room.from_weights(net, weights, found.classes, update, threads)
    return classifier, own_split(found, split)


def _report(
    path: Path,
    kind: Kind,
    run: str,
    weights: str,
    source: str,
    saliency: bool | None,
    nearest: bool | None,
    classifier: Classifier,
    scores: Scores,
    chosen: Photos,
    split: str,
    parts: list[Section],
) -> None:
    """Write the report, which tells of the worst mistakes what can be told, unless that is not wanted."""
    from handlens.evaluate import report

    facts, pictures = _background(kind, Path(run), weights, classifier)
    wrong = len(scores.mistakes()) > 0
    report.write(
        path,
        scores,
        chosen,
        title=f"{classifier.net} on {len(scores.classes)} classes of photos",
        split=split,
        facts=facts,
        pictures=pictures,
        saliency=_saliency(run, weights) if wrong and kind != "bundle" and saliency is not False else None,
        nearest=_nearest(run, source) if wrong and kind == "run" and nearest is not False else None,
        sections=parts,
    )


def _saliency(run: str, weights: str) -> Callable[[np.ndarray, int], np.ndarray] | None:
    from handlens.cli import explain, screen
    from handlens.train import mistakes

    subject = explain.load(run, weights)
    return mistakes.looks(subject.net, subject.preprocess, screen.note)


def _nearest(run: str, source: str) -> Nearest | None:
    """The run's training photos, now in `source` or where they were; None with a note where they are not there."""
    from handlens import checkpoint, files, nets
    from handlens.cli import screen
    from handlens.errors import HandlensError
    from handlens.train import Recipe, mistakes
    from handlens.train.features import Frozen

    trained = checkpoint.load(run)
    try:
        if not (stored := Path(run, files.SPLIT)).is_file():
            raise HandlensError(f"{run} has no {files.SPLIT}")
        recipe = Recipe.of(trained.recipe)
        places = [dataclasses.replace(recipe, photos=source)] if source else []
        data = _first_there([*places, recipe], stored)
        net = nets.without_hidden(trained.net, trained.arguments)
        train, sha256 = data.splits["train"], data.sha256
        with screen.progress("features of training photos", len(train)) as update:
            precision = recipe.precision if recipe.mode == "head" else "32-true"
            frozen = Frozen(net, trained.preprocess, precision=precision)
            return mistakes.nearest(frozen, train, sha256, progress=update)
    except HandlensError as error:
        screen.note(f"the report goes without the nearest training photos: {error}")
        return None


def _first_there(recipes: list[Recipe], stored: Path) -> Data:
    from handlens.errors import HandlensError
    from handlens.train.data import data_of

    for recipe in recipes[:-1]:
        with contextlib.suppress(HandlensError):
            return data_of(recipe, stored)
    return data_of(recipes[-1], stored)


def _background(kind: Kind, run: Path, weights: str, classifier: Classifier) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the report tells of how the classifier was made: tables of facts, and the curves of its training."""
    import handlens
    from handlens.cli.env import versions

    now = {"handlens": handlens.__version__, **{name: found for name, found in versions().items() if found}}
    contract = classifier.preprocess.to_dict()
    if kind == "weights":
        return {"Network": {"net": classifier.net, "weights": weights}, "Pixels": contract, "Versions": now}, {}
    if kind == "bundle":
        card = dict(classifier.card)
        tables = {name: card.pop(name) for name in classifier.card if isinstance(card[name], dict)}
        shipped = {"net": classifier.net, "runtime": classifier.runtime, "precision": classifier.precision, **card}
        return {"Bundle": shipped, **tables, "Pixels": contract, "Versions": now}, {}
    from handlens import checkpoint, files

    facts = checkpoint.read_facts(run)
    network = {"net": facts["net"], **facts["arguments"], "trained with handlens": facts["handlens_version"]}
    curves = run / files.CURVES
    pictures = {"Training": curves.read_bytes()} if curves.is_file() else {}
    return {"Recipe": facts["recipe"], "Network": network, "Pixels": contract, "Versions": now}, pictures
