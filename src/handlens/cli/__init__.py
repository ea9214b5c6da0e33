"""The command line: one file a command, and what all of them do with errors.

A command's file imports rooms inside its function: `handlens --help` loads neither torch nor numpy.
"""

from __future__ import annotations

import os
import sys

import typer

from handlens.cli import (
    bench,
    check,
    compare,
    compare_runs,
    cost,
    demo,
    draw_flowers,
    env,
    evaluate,
    examine,
    experiment,
    explain,
    export,
    learning_curve,
    nets,
    predict,
    serve,
    train,
)
from handlens.errors import HandlensError

app = typer.Typer(
    name="handlens",
    help="From a folder of labelled photos to a small image classifier, proven on real photos.",
    epilog="Begin with `handlens demo`, or with photos of your own: `handlens train PHOTOS`.",
    rich_markup_mode=None,  # rich's markup costs every call a quarter of a second
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("nets")(nets.nets)
app.command("cost")(cost.cost)
app.command("compare")(compare.compare)
app.command("examine")(examine.examine)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("compare-runs")(compare_runs.compare_runs)
app.command("predict")(predict.predict)
app.command("explain")(explain.explain)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.command("check")(check.check)
app.command("serve")(serve.serve)
app.command("experiment")(experiment.experiment)
app.command("learning-curve")(learning_curve.learning_curve)
app.command("demo")(demo.demo)
app.command("draw-flowers")(draw_flowers.draw_flowers)
app.command("env")(env.env)


def _version(wanted: bool) -> None:
    if wanted:
        import handlens

        print(f"handlens {handlens.__version__}")
        raise typer.Exit


@app.callback()
def handlens(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and leave."
    ),
) -> None:
    pass


def main() -> None:
    """The console script. Exit codes: 0 done, 2 something the user can mend (one sentence), 130 Ctrl-C.

    Anything else is a bug of handlens and shows its traceback.
    """
    # torch's threads spin while they wait; beside another busy program that made training 25 times slower here.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app(prog_name="handlens")
    except HandlensError as error:
        _fail(str(error))
    except OSError as error:
        from handlens.files import disk_error

        sentence = disk_error(error, error.filename or "a file")
        if not isinstance(sentence, HandlensError):
            raise
        _fail(str(sentence))


def _fail(sentence: str) -> None:
    from handlens.cli.screen import note

    note("handlens: " + " ".join(sentence.split()))
    sys.exit(2)
