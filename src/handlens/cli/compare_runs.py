"""`handlens compare-runs`: is the other one really better?"""

from __future__ import annotations

from pathlib import Path

import typer


def compare_runs(
    a: str = typer.Argument(..., metavar="A", help="A run's folder or a bundle."),
    b: str = typer.Argument(..., metavar="B", help="Another, of the same classes."),
    photos: str = typer.Argument(
        "", metavar="PHOTOS", show_default=False, help="Photos with labels. Without: the test split of run A."
    ),
    batch_size: int = typer.Option(32, min=1, help="Photos that go through the networks at once."),
    threads: int = typer.Option(0, min=0, help="Threads that compute the networks; 0: their runtimes' choice."),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Say whether B is really better than A, or only luckier.

    Both answer the same photos. What counts are those that only one of them gets right: McNemar's exact test says how
    often two equally good ones would differ by as much. Photos that one of the runs was trained on are left out.

    \b
    Examples:
      handlens compare-runs runs/small runs/big
      handlens compare-runs runs/flowers flowers.zip new-photos --json
    """
    from handlens import bundle
    from handlens import evaluate as room
    from handlens import run as run_room
    from handlens.cli import screen
    from handlens.cli.labelled import labelled
    from handlens.errors import HandlensError, counted, quoted
    from handlens.evaluate import paired

    room.check_installed()
    first, second = run_room.load(a, threads), run_room.load(b, threads)
    if set(first.classes) != set(second.classes):
        other = ", ".join(sorted(set(first.classes) ^ set(second.classes)))
        raise HandlensError(f"{a} and {b} do not know the same classes: only one of them knows {other}")
    if not photos and bundle.is_bundle(a):
        raise HandlensError(
            f"{a} is a bundle, which has no photos", f"handlens compare-runs {quoted(a)} {quoted(b)} PHOTOS"
        )
    chosen, how, unread, relabelled = labelled(a, photos)
    chosen = chosen.as_classes(first.classes)
    runs = [Path(run) for run in (a, b) if not bundle.is_bundle(run)]
    if runs:  # bundles do without torch
        from handlens.train.seen import seen as seen_by
    by_run = [seen_by(run, chosen, screen.progress, screen.note) for run in runs]
    seen = sorted({path for known in by_run for path in (*known.files, *known.copies)})
    learned = "trained on or chosen by" + (
        ", some saved anew or nearly the same" if any(x.copies for x in by_run) else ""
    )
    new_ones = f"both can be asked about new photos: handlens compare-runs {quoted(a)} {quoted(b)} NEW_PHOTOS"
    if len(seen) == len(chosen):
        raise HandlensError("no photo is left that neither was trained on or chosen by", new_ones)
    if seen:
        told = f"left out {counted(len(seen), 'photo')} that one of them was {learned}"
        screen.note(told if photos else f"{told}; {new_ones}")
        chosen = chosen.without(seen)
        how += f", without {len(seen)} that one of them was {learned}"
    bundles = [run for run in (a, b) if bundle.is_bundle(run)]
    caution = (
        f"{' and '.join(bundles)}: no split, so that these photos may be what it was trained on" if bundles else ""
    )
    if caution:
        screen.note(caution)
    caution = "; ".join(filter(None, (caution, relabelled)))  # of which a note has told
    scores = []
    for name, classifier in ((a, first), (b, second)):
        with screen.progress(f"evaluating {Path(name).name}", len(chosen)) as update:
            own = chosen.as_classes(classifier.classes)
            found = room.score(classifier.predict_batch, own, classifier.preprocess, batch_size, update)
        order = [classifier.classes.index(label) for label in first.classes]
        scores.append(found.reordered(order))
    if scores[0].repetition:
        screen.note(scores[0].repetition)
    for path, reason in scores[0].left_out:
        screen.note(f"left out: {path}: {reason}")
    left_out = [{"photo": path, "error": reason} for path, reason in (*unread, *scores[0].left_out)]
    result = {"a": a, "b": b, "photos": how, "caution": caution, **paired.compare(*scores), "left_out": left_out}
    if json:
        screen.print_json(result)
        return
    rows = [
        (letter, name, f"{line['top1']:.1%}", "{:.1%} to {:.1%}".format(*line["top1_ci95"]), line_only)
        for letter, name, line, line_only in (
            ("A", a, result["first"], result["only_first"]),
            ("B", b, result["second"], result["only_second"]),
        )
    ]
    screen.table("", ("", "run", "top-1", "95 % interval", "only this one right"), rows)
    low, high = result["difference_ci95"]
    screen.say(
        f"B minus A: {100 * result['difference']:+z.1f} points (95 % interval {100 * low:+z.1f} to {100 * high:+z.1f}) "
        f"by {counted(result['num_photos'], 'photo')}; {how}"
    )
    screen.say(result["verdict"])
