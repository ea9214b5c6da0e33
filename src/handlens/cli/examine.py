"""`handlens examine`: the truth about photos, before a network is trained on them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import numpy as np

    from handlens.photos import Findings, Photos
    from handlens.photos.diagnose import Finding
    from handlens.train.features import Frozen


def examine(
    photos: str = typer.Argument(
        "",
        metavar="PHOTOS",
        show_default=False,
        help="A folder with a subfolder a class, a CSV of path,label, or a published set. Without: those of --run.",
    ),
    run: Path | None = typer.Option(
        None, metavar="RUN", help="A run: its split shows leaks, its network finds suspected labels."
    ),
    labels: bool = typer.Option(False, "--labels", help="Find suspected labels without a run, by --net and --weights."),
    net: str | None = typer.Option(
        None, show_default="mobilenet_v3_small", help="--labels: the network whose features are used."
    ),
    weights: str | None = typer.Option(
        None, show_default="imagenet", help="--labels: its weights, imagenet or a file."
    ),
    fix: Path | None = typer.Option(
        None,
        metavar="DIR",
        help="Copy what is good into a new folder; with a name in .csv or .txt, list what to leave out.",
    ),
    report: Path | None = typer.Option(None, help="Write the report, one HTML file with thumbnails, here."),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Look for what is wrong with photos: broken files, duplicates, leaks, odd ones, suspected labels.

    Photos are only read. What was seen of them is kept in the cache, so that a second look is quick.

    \b
    Examples:
      handlens examine photos --report photos.html
      handlens examine photos --fix cleaned
      handlens examine photos --fix leave-out.csv --json
      handlens examine photos --run runs/flowers --report photos.html
    """
    from handlens import files
    from handlens import photos as room
    from handlens.cli import screen
    from handlens.errors import HandlensError, NotHereError
    from handlens.evaluate import wrong_labels
    from handlens.photos import clean
    from handlens.photos.diagnose import diagnose, sides, statistics

    if run:
        photos = photos or _photos_of(run)
        if not (run / files.SPLIT).is_file():  # nothing to look for leaks by: it may be no run at all
            from handlens import checkpoint

            checkpoint.read_facts(run)
    elif not photos:
        raise HandlensError("no photos were given", "name a folder of photos, or --run RUN")
    if (net or weights) and (run or not labels):
        raise HandlensError(
            "--net and --weights are for --labels" + (", and --run has a network of its own" if run else ""),
            "leave them out" if run else "add --labels",
        )
    if weights == "none":
        raise HandlensError("suspected labels need features, and --weights is none", "give imagenet or a file's path")
    if report:
        files.check_place(report, ".html", ".htm")
        if fix and fix.resolve() == report.resolve():
            raise HandlensError(f"--fix and --report are both {report}", "name two files")
        if fix and report.resolve().is_relative_to(fix.resolve()):  # it would be there before the copy, which is whole
            raise HandlensError(f"--report {report} lies within --fix {fix}", "write the report beside it")
    with screen.progress("downloading") as update:  # seen only for a published set that is not in the cache yet
        found = room.scan(photos, update, keep_empty=True)
    if loose := room.unsorted(photos):
        screen.note(loose)
    if fix:
        clean.check_target(fix, found)
    frozen, not_looked_for = None, ""
    if run or labels:  # before the photos are looked at
        try:
            wrong_labels.check(found.counts())  # before weights are downloaded
            frozen = _frozen(run, net or "mobilenet_v3_small", weights or "imagenet")
        except (NotHereError, wrong_labels.TooFewError) as error:  # such as cleanlab, which is not installed
            if labels:
                raise
            not_looked_for = str(error)
    with screen.progress("looking at photos", len(found)) as update:
        findings = room.examine(found, update, with_quality=True)
    if not findings.facts:
        path, reason = findings.broken[0]
        raise HandlensError(f"none of the photos of {found.root} can be read (the first: {path} {reason})")
    where = sides(run / files.SPLIT, findings.sha256) if run and (run / files.SPLIT).is_file() else None
    with screen.progress("looking for copies") as update:
        near = findings.near_duplicates(update)
    listed = diagnose(found, findings, near, where)
    if frozen:
        try:
            listed = _with_suspects(listed, found, findings, frozen)
        except wrong_labels.TooFewError as error:
            if labels:
                raise
            not_looked_for = str(error)
    if not_looked_for:
        screen.note(f"suspected labels are not looked for: {not_looked_for}")
    not_trainable = None
    try:
        room.check_trainable(room.usable(found, findings), findings.duplicates)
    except HandlensError as error:
        not_trainable = str(error)
        screen.note(f"these photos cannot be trained on: {error}")
    out = clean.leave_out(found, findings, listed, where)
    if report:
        from handlens.evaluate import examine_report

        examine_report.write(report, found, listed, statistics(findings), out)
        screen.note(f"the report is {report}")
    if json:
        classes = dict(zip(found.classes, found.counts().tolist(), strict=True))
        screen.print_json(
            {
                "num_photos": len(found),
                "classes": classes,
                "not_trainable": not_trainable,
                "sizes": statistics(findings),
                "findings": [finding._asdict() for finding in listed],
                "leave_out": out,
            }
        )
    else:
        _show(found, listed, statistics(findings), out, bool(fix), bool(report))
    if fix:  # last, so that the findings are told where there is nothing to copy
        _fix(fix, found, findings, out)


def _show(
    photos: Photos, listed: list[Finding], sizes: dict[str, str], out: dict[str, str], fixed: bool, reported: bool
) -> None:
    from handlens.cli import screen
    from handlens.errors import counted
    from handlens.photos.diagnose import KINDS

    screen.say(f"{counted(len(photos), 'photo')} in {counted(len(photos.classes), 'class')}")
    for name, value in sizes.items():
        screen.say(f"{name}: {value}")
    rows = []
    for kind, meaning in KINDS.items():
        if of_kind := [finding for finding in listed if finding.kind == kind]:
            first = of_kind[0]
            more = f" = {first.photos[1]}" if len(first.photos) > 1 else ""
            more += f" and {len(first.photos) - 2} more" if len(first.photos) > 2 else ""
            shown = f"{first.photos[0]}{more} ({first.detail})" if first.photos else first.detail
            rows.append((kind, len(of_kind), shown, meaning))
    if not rows:
        screen.say("nothing was found")
        return
    screen.say("")
    screen.table("", ("found", "times", "the first", "meaning"), rows)
    if not reported:
        screen.note("--report FILE shows the first of each kind with thumbnails, --json lists all")
    if out and not fixed:
        better = f"{counted(len(out), 'photo')} {'is' if len(out) == 1 else 'are'} better left out"
        screen.note(f"{better}: --fix DIR copies the others, --fix FILE.csv lists what to leave out")


def _fix(target: Path, photos: Photos, findings: Findings, out: dict[str, str]) -> None:
    from handlens.cli import screen
    from handlens.errors import counted
    from handlens.photos import clean

    if clean.is_list(target):
        clean.write_list(target, out)
        screen.note(f"{target} lists {counted(len(out), 'photo')} to leave out")
        return
    with screen.progress("copying", len(photos)) as update:
        number = clean.write_copy(target, photos, findings, out, update)
    screen.note(f"{number:,} of {counted(len(photos), 'photo')} copied to {target}; {len(out):,} left out")


def _photos_of(run: Path) -> str:
    """The photos that a run was trained on, where its recipe says they are."""
    from handlens import checkpoint
    from handlens.errors import HandlensError, quoted
    from handlens.photos.published import PUBLISHED

    named = str(checkpoint.read_facts(run)["recipe"].get("photos", ""))
    if not named:
        raise HandlensError(f"{run} does not name its photos", f"handlens examine PHOTOS --run {quoted(run)}")
    if named not in PUBLISHED and not os.path.exists(named):
        raise HandlensError(
            f"the photos of {run} are no longer in {named}",
            f"name where they are now: handlens examine PHOTOS --run {quoted(run)}",
        )
    return named


def _with_suspects(listed: list[Finding], photos: Photos, findings: Findings, frozen: Frozen) -> list[Finding]:
    """The findings with those photos added whose label a linear classifier, fitted to the others, speaks against."""
    import numpy as np

    from handlens.cli import screen
    from handlens.evaluate import wrong_labels
    from handlens.photos.diagnose import KINDS, Finding
    from handlens.photos.scan import listed as named

    whole = photos.without([path for path, _ in findings.broken])
    groups = findings.scenes(whole.paths)
    different = np.unique(np.stack([whole.labels, groups], 1), axis=0)
    counts = np.bincount(different[:, 0], minlength=len(whole.classes))
    enough = wrong_labels.check(counts)  # before the features are computed
    if few := [whole.classes[k] for k in np.flatnonzero(~enough & (counts > 0))]:
        screen.note(
            f"suspected labels are not looked for in {named(few)}: fewer than {wrong_labels.FOLDS} different photos"
        )
    chosen = np.flatnonzero(enough[whole.labels])
    whole, groups = whole.select(chosen), groups[chosen]
    present, labels = np.unique(whole.labels, return_inverse=True)
    classes = [whole.classes[k] for k in present]
    probabilities = wrong_labels.out_of_fold(_features(whole, findings, frozen), labels, groups)
    agreeing = f"the classifier that judges agrees with {(probabilities.argmax(1) == labels).mean():.0%} of the labels"
    if not wrong_labels.tells(probabilities, labels, groups):
        screen.note(
            f"suspected labels are not looked for: {agreeing}, which may be chance, as the network's features do not "
            "tell these classes apart: try another --net"
        )
        return listed
    screen.note(agreeing)
    suspected = [
        Finding(
            "suspected-label",
            (whole.paths[one.photo],),
            f"said to be {classes[labels[one.photo]]} ({one.own_probability:.0%}), "
            f"looks like {classes[one.probably]} ({one.probability:.0%})",
        )
        for one in wrong_labels.suspects(probabilities, labels)
    ]
    order = list(KINDS)
    return sorted([*listed, *suspected], key=lambda finding: order.index(finding.kind))


def _features(photos: Photos, findings: Findings, frozen: Frozen) -> np.ndarray:
    """float32 (N, F): the embedding of each photo, from the cache where it has them."""
    from handlens.cli import screen

    with screen.progress("features", len(photos)) as update:
        return frozen.features(photos, findings.sha256, progress=update)[0]


def _frozen(run: Path | None, net: str, weights: str) -> Frozen:
    """What computes features for suspected labels: a run's network, else `net` with `weights`.

    Raises NotHereError where a package for it is missing.
    """
    from handlens.cli import screen
    from handlens.evaluate import wrong_labels

    wrong_labels.check_installed()
    from handlens import checkpoint, nets
    from handlens.nets import weights as published
    from handlens.train import Recipe
    from handlens.train.features import Frozen

    precision = "32-true"
    if run:
        trained = checkpoint.load(run)
        # The extra layer has seen the labels, wrong ones too.
        network, preprocess = nets.without_hidden(trained.net, trained.arguments), trained.preprocess
        recipe = Recipe.of(trained.recipe)
        if recipe.mode == "head":  # as it computed and kept them
            precision = recipe.precision
        else:
            screen.note("the run's network was trained on these labels and may have learned the wrong ones by heart")
    else:
        with screen.progress("downloading") as update:
            file = published.find(net, os.fspath(weights), progress=update)
        network, preprocess = published.load(file), file.preprocess
    return Frozen(network, preprocess, precision=precision)
