"""`handlens check`: is a bundle what it says, and does it answer here as the trained network did."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from handlens.run.bundles import Findings


def check(
    bundle: str = typer.Argument(
        ..., metavar="BUNDLE", help="A bundle's folder or zip, as `handlens export` makes it."
    ),
    threads: int = typer.Option(0, min=0, help="Threads of the processor; 0: the runtime's choice."),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Verify a bundle: hashes, manifest, the facts inside its artifact, and its answers to its golden photos.

    The answers are those of the runtime that the bundle is for; where it is not installed they are left out, and that
    is said. Every probability must be that of the trained network to 0.001 (float32) or 0.01 (float16), and the answer
    the same; an INT8 or bfloat16 bundle must give the same answer where the trained network's first two are 0.2 or
    more apart. The exit code is 2 if anything is wrong.

    \b
    Examples:
      handlens check flowers.zip
      handlens check flowers-int8 --threads 1 --json
    """
    from handlens.cli import screen
    from handlens.run import bundles

    found = bundles.check(bundle, threads)
    if json:
        screen.print_json(_facts(bundle, found, all(answer.ok for answer in found.answers)))
    else:
        _show(found)
    refuse_wrong(bundle, found)


def _facts(path: str, found: Findings, ok: bool) -> dict[str, Any]:
    bundle = found.bundle
    return {
        "bundle": path,
        "ok": ok,
        "runtime": bundle.runtime,
        "precision": bundle.precision,
        "net": bundle.net,
        "classes": bundle.classes,
        "handlens_version": bundle.handlens_version,
        "artifact_bytes": sum(map(len, bundle.artifact.values())),
        "facts_agree": found.facts_agree,
        "golden": [dataclasses.asdict(answer) for answer in found.answers],
        "left_out": found.left_out,
    }


def _show(found: Findings) -> None:
    from handlens.cli import screen

    bundle = found.bundle
    size_mb = sum(map(len, bundle.artifact.values())) / 1e6
    screen.say(f"{bundle.net}, {len(bundle.classes)} classes, {bundle.runtime} {bundle.precision}, {size_mb:.1f} MB")
    screen.say(f"hashes and manifest: right, format of handlens {bundle.handlens_version}")
    screen.say(f"facts inside the artifact: {'those of the manifest' if found.facts_agree else 'not read'}")
    if found.left_out:
        screen.say(f"golden photos: not run here: {found.left_out}")
    elif not found.answers:
        screen.say("golden photos: the bundle has none")
    else:
        lines = [
            (
                answer.photo,
                f"{answer.expected} {answer.expected_p:.1%}",
                f"{answer.answered} {answer.answered_p:.1%}",
                f"{answer.difference:.2g}",
                "yes" if answer.ok else "NO",
            )
            for answer in found.answers
        ]
        screen.table("", ("photo", "trained network", f"{bundle.runtime} here", "differ by", "right"), lines)


def refuse_wrong(path: str | os.PathLike[str], found: Findings) -> None:
    """Raise HandlensError where a bundle answers a golden photo otherwise than the trained network did."""
    from handlens.errors import HandlensError, counted

    wrong = [answer for answer in found.answers if not answer.ok]
    if not wrong:
        return
    worst = max(wrong, key=lambda answer: answer.difference)
    raise HandlensError(
        f"{path} answers {len(wrong)} of {counted(len(found.answers), 'golden photo')} differently than the trained "
        f"network: {worst.photo} is {worst.answered} {worst.answered_p:.1%}, was {worst.expected} "
        f"{worst.expected_p:.1%}, and probabilities differ by {worst.difference:.2g}",
        "do not use it here; export again, or use another runtime",
    )
