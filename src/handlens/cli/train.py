"""`handlens train`: from photos to a judged classifier."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from handlens.train import Run
    from handlens.train.several import Plan


def train(
    photos: str = typer.Argument(
        "",
        metavar="PHOTOS",
        show_default=False,
        help="A folder with a subfolder a class, one with train/val/test in it, a CSV of path,label, or flower_photos.",
    ),
    out: Path | None = typer.Option(None, help="The run's folder; must not exist. Default: a new one below runs."),
    net: str | None = typer.Option(None, help="Which network: `handlens nets` lists them. [mobilenet_v3_small]"),
    mode: str | None = typer.Option(
        None, help="full, last, head or scratch. [full; last for few photos; scratch without weights]"
    ),
    weights: str | None = typer.Option(None, help="imagenet, none, or a .pth or .safetensors file. [imagenet]"),
    width: float | None = typer.Option(None, help="Multiplier of the network's channels. [1.0]"),
    image_px: int | None = typer.Option(None, help="Height and width that the network sees. [its own, mostly 224]"),
    normalisation: str | None = typer.Option(
        None, help="own, or each photo's by itself: min-max, z-score, max-abs or l2. [own: as the weights]"
    ),
    epochs: int | None = typer.Option(None, help="Times that all photos are seen. [by mode and number of photos]"),
    batch_size: int | None = typer.Option(None, help="Photos a step. [32, fewer for few photos; 128 for mode head]"),
    lr: float | None = typer.Option(None, help="Highest learning rate of the classifier. [by mode]"),
    augment: str | None = typer.Option(None, help="none, light or trivial. [trivial; light for modes last and head]"),
    balance: str | None = typer.Option(None, help="none, weights or sampling. [weights beyond 1 : 3]"),
    head_hidden: int | None = typer.Option(
        None, help="Width of an extra layer before the classifier. [0: none; 512 for mode head]"
    ),
    last_blocks: int | None = typer.Option(None, help="Mode last: how many blocks are trained. [4]"),
    patience_epochs: int | None = typer.Option(None, help="Stop after so many epochs without gain. [0: never]"),
    precision: str | None = typer.Option(None, help="auto, 32-true, bf16-mixed or 16-mixed. [auto]"),
    cache_mb: int | None = typer.Option(None, help="Memory for decoded photos. [2048]"),
    seed: int | None = typer.Option(None, help="Decides every random choice. [0]"),
    recipe: Path | None = typer.Option(None, help="A recipe.toml to begin from; options given beside it win."),
    resume: bool = typer.Option(False, "--resume", help="Go on with the interrupted run in --out."),
    continue_run: Path | None = typer.Option(
        None, "--continue", metavar="RUN", help="Go on from a finished run, with its test photos kept."
    ),
    add: Path | None = typer.Option(None, metavar="PHOTOS", help="With --continue: photos or classes to learn too."),
    prune: float | None = typer.Option(
        None, help="With --continue: share of the expansion channels to take out (MobileNetV2 and V3). [0]"
    ),
    teacher: Path | None = typer.Option(
        None, metavar="RUN", help="A finished run on the same classes, whose answers are learned beside the labels."
    ),
    unknown: Path | None = typer.Option(
        None, metavar="DIR", help="Photos of none of the classes, to learn from which score on a photo is unknown."
    ),
    repeats: int = typer.Option(1, min=1, help="Train so many seeds, into OUT/seed-0 and so on: the mean and spread."),
    folds: int = typer.Option(
        0,
        min=0,
        help="Train so many times, into OUT/fold-1 and so on, each photo once in the test.",
    ),
    device: str = typer.Option("auto", help="auto, cpu, cuda or mps."),
    devices: int = typer.Option(1, min=1, help="How many devices, or processes on the CPU."),
    num_nodes: int = typer.Option(1, min=1, help="How many machines: start it on each, MASTER_ADDR, NODE_RANK set."),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Train an image classifier on labelled photos, and judge it on photos that chose nothing.

    Nothing has to be chosen: the network is MobileNetV3-Small with ImageNet weights, the rest follows from the number
    of photos. The run's folder holds the weights, the recipe, the split, the log, the curves and report.html.
    Ctrl-C saves; --resume goes on, with several seeds or folds too.

    \b
    Examples:
      handlens train photos
      handlens train photos --net mobilenet_v2 --mode head --out runs/quick
      handlens train photos --weights none --image-px 160 --epochs 100
      handlens train --resume --out runs/quick
      handlens train --continue runs/quick --add corrected-photos --out runs/better
      handlens train --recipe runs/quick/recipe.toml --seed 1 --out runs/again
      handlens train photos --net mobilenet_v3_small --teacher runs/big --out runs/small
      handlens train photos --unknown holiday --out runs/known
      handlens train photos --mode head --repeats 5 --out runs/five
      handlens train photos --mode head --folds 5 --out runs/folds
      handlens train --continue runs/quick --prune 0.3 --teacher runs/quick --out runs/smaller
    """
    given = _given(locals())
    from handlens import files
    from handlens.cli import screen
    from handlens.errors import HandlensError

    if resume and (repeats > 1 or folds):
        raise HandlensError(
            "--resume goes on with seeds or folds as they were begun", "handlens train --resume --out RUNS, no more"
        )
    begun = bool(resume and out and (out / files.PLAN).is_file())
    if resume and (given or recipe or not out):
        raise HandlensError(
            "--resume goes on with a run as it was begun",
            "give --out RUN, and at most where its photos are now: handlens train --resume --out RUN",
        )
    if recipe:
        from handlens.train.recipe import read_toml

        given = _beside(_of_file(read_toml(recipe), bool(continue_run)), given) | given
    in_recipe = given.pop("photos", "")
    source = photos or in_recipe
    import handlens

    if devices == num_nodes == 1 and "torch" not in sys.modules:
        from handlens.photos.ahead import looking_ahead
        from handlens.photos.published import PUBLISHED
        from handlens.photos.scan import scan

        if source and source not in PUBLISHED and not Path(source).expanduser().is_dir():
            scan(Path(source).expanduser())  # says what is wrong with it before torch is imported
        with looking_ahead(source):
            import handlens.train
    if repeats > 1 or folds or begun:
        if devices > 1 or num_nodes > 1:
            raise HandlensError(
                "several seeds or folds are trained one after the other, each on one device",
                "leave out --devices and --num-nodes",
            )
        if begun:
            from handlens.train.several import moved, read

            assert out
            carry_out(moved(read(out), photos) if photos else read(out), json, device)
        else:
            several(source, repeats, folds, out, given, json, device)
        return
    fabric: dict[str, Any] = {"device": device, "devices": devices, "num_nodes": num_nodes}
    with watcher() as watching:
        try:
            run = handlens.fit(source, out=out, resume=resume, watcher=watching, **fabric, **given)
        except KeyboardInterrupt:
            screen.note(f"\n{to_resume(watching.folder or (out if resume else None), **fabric)}")
            raise typer.Exit(130) from None
        except RuntimeError as error:  # of several processes, one that has failed has said why
            if not re.search("[Cc]onnection (closed|reset) by peer", str(error)):
                raise
            raise HandlensError("another process of this training has ended", "its own message tells why") from None
    if not watching.folder:  # one of several processes, of which the first speaks
        return
    if json:
        screen.print_json(
            {"run": run.folder, "classes": run.classes, "recipe": vars(run.recipe), "metrics": run.metrics}
        )
        return
    show(run)


def to_resume(folder: Path | None, device: str = "auto", devices: int = 1, num_nodes: int = 1) -> str:
    """What is told of a training that was stopped by hand, and of how to go on with it, where it has a folder."""
    from handlens import files

    if folder is None:
        return "stopped"
    saved = Path(folder, files.STATE).is_file()
    how = "saved; go on with" if saved else "stopped; begin its epochs again with"
    return f"{how}: {_resume(folder, device, devices, num_nodes)}"


def _resume(folder: Path, device: str, devices: int = 1, num_nodes: int = 1) -> str:
    """The command that goes on with a folder where it was begun: the recipe does not tell."""
    from handlens.errors import quoted

    where = f" --device {device}" if device != "auto" else ""
    where += f" --devices {devices}" if devices > 1 else ""
    where += f" --num-nodes {num_nodes}" if num_nodes > 1 else ""
    return f"handlens train --resume --out {quoted(folder)}{where}"


def several(
    photos: str, repeats: int, folds: int, out: Path | None, given: dict[str, Any], json: bool, device: str
) -> None:
    """Train `repeats` seeds, each with a split of its own, or `folds`; print each run, the mean and the spread."""
    from handlens.errors import HandlensError
    from handlens.train import several as room

    option = "--folds" if folds else "--repeats"
    if folds == 1:
        raise HandlensError("--folds 1 leaves nothing to train on", "give 2 or more, such as --folds 5")
    if folds and repeats > 1:
        raise HandlensError(f"--folds {folds} and --repeats {repeats} were given", "drop one of the two")
    if not out:
        raise HandlensError(f"{option} needs a folder for its runs", f"handlens train PHOTOS {option} 5 --out RUNS")
    if given.get("continue_run"):
        raise HandlensError(f"{option} trains anew with other splits, and --continue keeps one", "drop one of them")
    with watcher() as watching:
        plan = room.begin(photos, out, given, repeats=repeats, folds=folds, watcher=watching)
    carry_out(plan, json, device)


def carry_out(plan: Plan, json: bool, device: str) -> None:
    """Do what a plan has still to do, and print each run, the mean and the spread."""
    from handlens import files
    from handlens.cli import screen
    from handlens.train import several as room

    runs: list[dict[str, Any]] = []
    told: set[str] = set()
    for number, one in enumerate(plan.trainings):
        screen.note(f"{one.name}, {number + 1} of {len(plan.trainings)}")
        with watcher(told) as watching:
            try:
                runs.append(room.train(plan, number, watching, device))
            except KeyboardInterrupt:
                screen.note(f"\nstopped; go on with: {_resume(plan.folder, device)}")
                raise typer.Exit(130) from None
    found = room.summary(plan, runs)
    files.write_json(plan.folder / f"{plan.kind}.json", found)
    if json:
        screen.print_json(found)
        return
    screen.table(
        "",
        ("run", "top-1 on its test photos", "95 % interval"),
        [(x["run"], f"{x['top1']:.1%}", "{:.1%} to {:.1%}".format(*x["top1_ci95"])) for x in runs if x["top1_ci95"]],
    )
    named = all(x.get("test_is", "").startswith("named") for x in runs)
    whose = "all tested on the photos that are named as test" if named else "each with a split of its own"
    if found["standard_deviation"] is not None:
        within = ""
        if found["mean_ci95"]:
            within = " (95 % interval {:.1%} to {:.1%} by Student's t, for other seeds with these photos)".format(
                *found["mean_ci95"]
            )
        screen.say(
            f"mean {found['mean']:.1%}{within}, standard deviation {100 * found['standard_deviation']:.1f} points, "
            f"{found['lowest']:.1%} to {found['highest']:.1%} over {sum(x['top1'] is not None for x in runs)} "
            f"{'folds' if plan.kind == 'folds' else f'seeds, {whose}'}"
        )
    if whole := found.get("all_photos"):
        low, high = whole["top1_ci95"]
        screen.say(
            f"each of the {whole['num_photos']} photos tested once: {whole['top1']:.1%} ({low:.1%} to {high:.1%})"
        )


def show(run: Run) -> None:
    """Print a finished run: its figures, and what to type next."""
    from handlens.cli import screen
    from handlens.errors import counted, quoted

    test = run.metrics.get("test")
    if test:
        low, high = test["top1_ci95"]
        photos = counted(test["num_photos"], "test photo")
        effective = test.get("effective_num_photos", test["num_photos"])  # not of runs of an earlier version
        alike = (
            f", with copies as good as {effective:.0f} different ones" if effective < test["num_photos"] - 0.5 else ""
        )
        screen.say(f"top-1 {test['top1']:.1%} on {photos}{alike} (95 % interval {low:.1%} to {high:.1%})")
    else:
        screen.say("no photo was left for the test, so that nothing says how good it is: add photos that are different")
    if judged := run.metrics.get("unknown", {}).get("num_outside"):
        found = run.metrics["unknown"]
        screen.say(
            f"none of these: {found['false_accept']:.1%} of {judged} unknown photos that chose nothing pass for one "
            f"of the classes, {1 - found['true_accept']:.1%} of the test photos are called unknown; "
            f"AUROC {found['auroc']:.3f}"
        )
    report = f"report  {run.folder / 'report.html'}\n" if test else ""
    epoch = run.metrics.get("kept_epoch")
    kept = f"kept    epoch {epoch} of {run.metrics['epochs']}\n" if epoch else ""
    screen.say(f"{kept}run     {run.folder}\n{report}next    handlens predict {quoted(run.folder)} PHOTO")


_RECIPE_OPTIONS = (
    "net", "mode", "weights", "width", "image_px", "normalisation", "epochs", "batch_size", "lr", "augment", "balance",
    "head_hidden", "last_blocks", "patience_epochs", "precision", "cache_mb", "seed", "continue_run", "add",
    "prune", "teacher", "unknown",
)  # fmt: skip


def _of_file(fields: dict[str, Any], continues: bool) -> dict[str, Any]:
    """What of a recipe's file holds: where the training goes on from a run, not what that run has settled."""
    if not continues:
        return fields
    settled = {"net", "weights", "width", "image_px", "head_hidden", "normalisation"}
    if "continue_run" in fields:  # it is a run's own file, which names that run's photos
        settled |= {"photos", "continue_run", "add"}
    kept = {name: value for name, value in fields.items() if name not in settled}
    return {name: value for name, value in kept.items() if (name, value) != ("mode", "scratch")}


def _beside(fields: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What of a recipe's file holds beside options: not what was chosen for another size, or for more epochs."""
    changed = {name for name in options if name in fields and options[name] != fields[name]}
    sizes = {"train_px", "first_px", "last_px"} if "image_px" in changed else set()
    kept = {name: value for name, value in fields.items() if name not in sizes}
    if "epochs" in changed and "warmup_epochs" in kept:
        kept["warmup_epochs"] = min(kept["warmup_epochs"], round(options["epochs"] / 5, 2))
    return kept


def _given(options: dict[str, Any]) -> dict[str, Any]:
    chosen = {name: options[name] for name in _RECIPE_OPTIONS if options[name] is not None}
    return {name: str(value) if isinstance(value, Path) else value for name, value in chosen.items()}


def watcher(told: set[str] | None = None) -> Any:
    """Shows a run on standard error: notes, but those that were `told`, bars while it works, a line an epoch."""
    import contextlib

    from handlens.cli import screen
    from handlens.train import Watcher
    from handlens.train.loop import Step

    class ScreenWatcher(Watcher):
        def __init__(self, bars: contextlib.ExitStack) -> None:
            self.bars = bars
            self.label = ""
            self.update: Any = None
            self.last_step: Step | None = None
            self.folder: Path | None = None

        def started(self, folder: Path) -> None:
            self.folder = folder

        def note(self, text: str) -> None:
            self._end_bar()
            if told is None or text not in told:
                screen.note(text)
            if told is not None:
                told.add(text)

        def count(self, what: str, done: int, total: int) -> None:
            self._bar(what, total)
            self.update(done, total)
            if 0 < total <= done:  # of a download it may be unknown, 0
                self._end_bar()

        def step(self, step: Step) -> None:
            self._bar("training", step.epochs * step.steps)
            self.last_step = step
            # Not by the steps done: those of earlier epochs may have been on smaller crops, or before an interruption.
            self.update(
                (step.epoch - 1) * step.steps + step.step,
                step.epochs * step.steps,
                rate=f"loss {step.loss:.3f}, {step.photos_per_s:.0f} photos/s",
                left_s=step.seconds_left,
            )

        def epoch(self, log: list[dict[str, float]]) -> None:
            row = log[-1]
            # A head's epochs take no time: not each is worth a line. Nor has a resumed epoch always a step to do.
            if self.last_step is None and row["seconds"] < 1 and len(log) % 10:
                return
            screen.note(
                f"epoch {row['epoch']:3.0f}  loss {row['train_loss']:.3f}  top-1 {row['train_top1']:6.1%}  "
                f"validation {row['validation_loss']:.3f} {row['validation_top1']:6.1%}  "
                f"{row['photos_per_s']:6.1f} photos/s"
            )

        def _bar(self, label: str, total: int) -> None:
            if label != self.label:
                self._end_bar()
                self.label = label
                self.update = self.bars.enter_context(screen.progress(label, total))

        def _end_bar(self) -> None:
            self.bars.close()
            self.label = ""

    @contextlib.contextmanager
    def watching() -> Any:
        with contextlib.ExitStack() as bars:
            yield ScreenWatcher(bars)

    return watching()
