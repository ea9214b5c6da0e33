"""The command line: one file a command, and what all of them do with errors.

A command's file imports rooms inside its function: `handlens --help` loads neither torch nor numpy.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys

import typer
from typer.exceptions import TyperException

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
from handlens.errors import HandlensError, missing_extra

TRAINING = ("torch", "lightning-fabric")  # what whole rooms import; other packages are asked for where they are used

app = typer.Typer(
    name="handlens",
    help="From a folder of labelled photos to a small image classifier, proven on real photos.",
    epilog="Begin with `handlens demo`, or with photos of your own: `handlens train PHOTOS`.",
    rich_markup_mode=None,  # rich's markup costs every call a quarter of a second
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("nets", short_help="List the networks, their size and published accuracy.")(nets.nets)
app.command("cost", short_help="Count parameters, MACs, memory and receptive field.")(cost.cost)
app.command("compare", short_help="Compare networks by accuracy, size and latency here.")(compare.compare)
app.command("examine", short_help="Look for what is wrong with photos, before training.")(examine.examine)
app.command("train", short_help="Train a classifier on labelled photos, and judge it.")(train.train)
app.command("evaluate", short_help="Score a trained classifier on labelled photos.")(evaluate.evaluate)
app.command("compare-runs", short_help="Say whether one run is really better than another.")(compare_runs.compare_runs)
app.command("predict", short_help="Say what is on photos, or that it is none of the classes.")(predict.predict)
app.command("explain", short_help="Show what a trained network looks at, and has learned.")(explain.explain)
app.command("export", short_help="Make one file for a phone, board, browser or server.")(export.export)
app.command("bench", short_help="Measure a bundle's latency and photos a second here.")(bench.bench)
app.command("check", short_help="Verify a bundle: hashes, facts, golden answers.")(check.check)
app.command("serve", short_help="Answer photos over HTTP, with a page for the camera.")(serve.serve)
app.command("experiment", short_help="Repeat an experiment of the papers, with its figure.")(experiment.experiment)
app.command("learning-curve", short_help="Say what more photos would bring.")(learning_curve.learning_curve)
app.command("demo", short_help="Draw flowers and do the whole job on them, offline.")(demo.demo)
app.command("draw-flowers", short_help="Draw flower pictures of five classes by program.")(draw_flowers.draw_flowers)
app.command("env", short_help="Show what is installed and what this machine has.")(env.env)


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
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started it; another file would take its number
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    # torch's threads (GNU's OpenMP) spin for long while they wait: beside another busy program that made training up to
    # 25 times slower. Sleeping at once made it half as fast on an idle machine; so they spin a little, and then sleep.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # numpy's (OpenBLAS's) spin for 2 ** 26 cycles, 25 ms, after each product of matrices: what torch computes in these
    # took twice as long on two cores. Of 2 ** 20 nothing is seen.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    gc.set_threshold(100_000)  # from 700: torch's import makes half a million objects that stay, in a tenth less time
    atexit.register(gc.freeze)  # which are not looked through once more at the end: a second less
    try:
        sys.exit(app(prog_name="handlens", standalone_mode=False) or 0)
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a bare `handlens`
            print(error.format_message(), file=sys.stderr)
            sys.exit(2)
        from handlens.cli.usage import wrong_usage

        _fail(str(wrong_usage(error)))
    except HandlensError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if (package := (error.name or "").partition(".")[0].replace("_", "-")) not in TRAINING:
            raise
        _fail(str(missing_extra("train", package)))
    except OSError as error:
        from handlens.files import used_error

        sentence = used_error(error)
        if not isinstance(sentence, HandlensError):
            raise
        _fail(str(sentence))


def _fail(sentence: str) -> None:
    from handlens.cli.screen import note

    note("handlens: " + " ".join(sentence.split()))
    sys.exit(2)
