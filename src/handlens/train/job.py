"""A whole training run: photos in, a judged classifier out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from handlens import checkpoint, files, nets
from handlens import photos as photos_room
from handlens.errors import HandlensError, need, not_one_of, quoted
from handlens.evaluate import unknown
from handlens.nets import weights
from handlens.photos import write_split
from handlens.photos.scan import listed
from handlens.run.torch_runtime import default_device, keep_freed_memory
from handlens.train import distil, last, learned, loop, modes, plan, start, state, trial
from handlens.train.alone import alone, check_alone
from handlens.train.data import Data, data_of, keep_earlier
from handlens.train.judge import judge
from handlens.train.recipe import Recipe, choose, mode_for, unused
from handlens.train.watcher import Watcher, counter

DEVICES = ("auto", "cpu", "cuda", "mps")
NEEDED = {"tensorboard": "tensorboard", "scipy": "scipy", "matplotlib": "matplotlib", "jinja2": "jinja2"}
_PATHS = ("photos", "weights", "continue_run", "add", "teacher", "unknown")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, the resolved recipe, the classes in order, and the figures.

    metrics: "test" and "validation" as `evaluate.Scores.to_dict` gives them, "seconds", "epochs", "kept_epoch" (from 1
    on), "notes".
    """

    folder: Path
    recipe: Recipe
    classes: tuple[str, ...]
    metrics: dict[str, Any]


def fit(
    photos: str | os.PathLike[str] = "",
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    watcher: Watcher | None = None,
    **given: Any,
) -> Run:
    """Train a classifier on labelled photos and judge it on a test split that chose nothing.

    photos: a folder with a subfolder a class, a CSV, or a published set's name. out: the run's folder, which must not
    exist, by default a new one below `runs`. given: fields of `Recipe`; the rest is chosen by the photos. With
    `resume`, `out` is the folder of an interrupted run, `photos` where its photos are now if they were moved, and
    nothing else is given. device: "auto", "cpu", "cuda" or "mps"; devices, num_nodes: how many of them, on how many
    machines (lightning-fabric's meaning). Of two trainings at once in one process neither can be repeated: they draw
    from one generator of torch's.
    Raises HandlensError for photos, weights or values that do not fit; KeyboardInterrupt after saving at Ctrl-C.
    """
    watcher = watcher or Watcher()
    loop.check_default_type()
    keep_freed_memory()
    out = os.path.expanduser(out) if out else None
    folder = _interrupted(out) if resume else Path()
    if resume and given:
        raise HandlensError(
            f"a run is gone on with as it was begun, and not with another {listed(given)}",
            "give `out`, and at most where its photos are now",
        )
    several = devices != 1 or num_nodes != 1
    if several:  # no trial: all processes must come to the same answer before they know of each other
        stored = Recipe.read(folder / files.RECIPE).precision if resume else given.get("precision", "auto")
        given["precision"] = trial.usual_precision(device) if stored == "auto" else stored
    fabric = _fabric(device, devices, num_nodes, given["precision"] if several else "32-true")
    speaks = not (fabric.local_rank or fabric.node_rank)  # one process for all
    if not speaks:
        watcher = Watcher()
    # What needs no photos is checked before `launch`, which begins the other processes: they come by here, too.
    if resume:
        if speaks:  # the first process may hold the folder by the time that another comes by
            check_alone(folder)
        recipe = Recipe.read(folder / files.RECIPE)
        state.check_processes(folder, getattr(fabric.strategy, "num_processes", 1) * num_nodes)
        _check_precision(recipe.precision, fabric.device.type)
        _check_there(folder, recipe)
        if moved := os.fspath(photos):
            recipe = dataclasses.replace(recipe, photos=absolute(moved))
        if recipe.unknown:
            unknown.check_halves(recipe.unknown, counter(watcher, "looking at unknown photos"))
    else:
        given = settled({**given, "photos": os.fspath(photos)} if os.fspath(photos) else given, watcher)
        if given.get("continue_run"):
            if "mode" not in given:
                watcher.note("mode full is chosen, as always where a run goes on from another; --mode head is quicker")
            given = start.defaults_from_run(given["continue_run"], given)
        if out and speaks and num_nodes == 1:
            _check_free(Path(out))
        draft = checked(given, watcher)
        if draft.teacher:
            given["train_px"] = draft.train_px
        if not out and speaks:
            _check_free(_folder(draft))
        _check_precision(draft.precision, fabric.device.type)
        fetch(draft, watcher)
    fabric.launch()
    if out and speaks and not resume and num_nodes > 1:  # now, so that the other machines learn of it
        _check_free(Path(out))
    looking, searching = counter(watcher, "looking at photos"), counter(watcher, "looking for copies")
    if resume:
        data = data_of(recipe, folder / files.SPLIT, looking, resumed=True, searching=searching)
        _check_classes(folder, data.classes)
    else:
        data = data_of(draft, None, looking, searching=searching)
        counts = [int(count) for count in data.splits["train"].counts()]
        if "mode" not in given:
            watcher.note(plan.why_mode(mode_for(counts), counts))
        recipe = choose(counts, given)
        if left := unused(counts, given):
            watcher.note(f"mode {recipe.mode} does not use {', '.join(left)}")
        if recipe.balance == "weights" and "balance" not in given:
            watcher.note(plan.why_weights(counts))
        folder = Path(out) if out else _folder(recipe)
    loop.check_enough(len(data.splits["train"]), fabric.world_size)
    data = dataclasses.replace(data, notes=(*data.notes, *plan.few(data.splits)))
    for note in data.notes:
        watcher.note(note)
    if not resume:
        learned.check_unseen(recipe, data, watcher)
    if recipe.unknown:
        paths = [path for photos in data.splits.values() for path in photos.paths]
        own = {by[path] for path in paths for by in (data.sha256, data.pixels)}
        unknown.check_halves(recipe.unknown, known=own)
    begun = start.start_of(recipe, data.classes)
    if recipe.mode != "head":  # a head's extra layer comes after the features are computed
        begun = modes.with_hidden(recipe, begun)
    cut, why_not = last.cut_for(begun.net, recipe, *modes.learned_and_judged(data), begun.teacher, fabric.world_size)
    frozen, step_s = None, 0.0
    if recipe.mode == "head":
        if recipe.precision == "auto":
            recipe = dataclasses.replace(recipe, precision=trial.usual_precision(fabric.device.type))
        frozen = modes.frozen_of(recipe, begun, fabric.device)
    else:
        net = cut.tail if cut else loop.prepare(begun.net, recipe)
        takes = cut.shape(recipe.train_px or recipe.image_px) if cut else ()
        trying = counter(watcher, "timing a step of training")
        precision, step_s = trial.faster_precision(net, recipe, fabric.device, begun.teacher, takes, trying)
        recipe = dataclasses.replace(recipe, precision=precision)
    if not resume:
        if fabric.global_rank == 0:
            folder = _begin(folder, recipe, data, named=bool(out))
        folder = Path(fabric.broadcast(str(folder)))
    with contextlib.ExitStack() as held:
        refused: tuple[str, str] | None = None
        if fabric.global_rank == 0:
            try:
                held.enter_context(alone(folder))
                _interrupted(folder)  # still: another process may have ended it while this one looked at the photos
                if resume and moved:
                    recipe.write(folder / files.RECIPE)
            except HandlensError as error:
                refused = error.message, error.hint
        if refused := fabric.broadcast(refused):  # the others would wait for the first one
            raise HandlensError(*refused)
        watcher.started(folder)
        done = state.epochs_done(folder) if resume else None
        named = None if resume else given
        watcher.note(plan.plan(recipe, data, begun, step_s, fabric, cut, frozen, done, named))
        if why_not:
            watcher.note(why_not)
        if not several:
            fabric = _fabric(device, devices, num_nodes, recipe.precision)
        fabric.barrier()
        since = time.monotonic() - state.spent_s(folder)
        train = functools.partial(modes.fit_whole, cut=cut)
        if frozen:
            train = functools.partial(modes.fit_frozen, frozen=frozen)
        trained = train(recipe, data, begun, folder, fabric, watcher)
        metrics: dict[str, Any] = {"seconds": round(time.monotonic() - since, 1), "epochs": len(trained.log)}
        metrics["kept_epoch"] = loop.Kept(len(modes.learned_and_judged(data)[1]), trained.log).epoch
        metrics |= {"device": plan.device_name(fabric.device), "photos": {k: len(v) for k, v in data.splits.items()}}
        metrics |= {"notes": list(data.notes), "test_is": data.test_is}
        if fabric.global_rank == 0:
            if not trained.nearest:
                trained = modes.with_looks(trained, recipe, data, fabric.device, watcher)
            judge(trained, recipe, data, folder, metrics, watcher)
            files.patiently(lambda: (folder / files.STATE).unlink(missing_ok=True))
        fabric.barrier()
    return Run(folder, recipe, data.classes, metrics)


def _fabric(device: str, devices: int | str, num_nodes: int, precision: str) -> Fabric:
    if device not in DEVICES:
        raise not_one_of("device", device, DEVICES)
    if device in ("cuda", "mps") and not torch.get_device_module(device).is_available():
        raise HandlensError(f"device is {device!r}, and torch finds none here", "try --device auto")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the precision is told in the plan
    accelerator = "cpu" if device == "auto" and default_device().type == "cpu" else device
    _check_precision(precision, accelerator)
    try:
        return Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, precision=precision)
    except (TypeError, ValueError, RuntimeError) as error:  # also MisconfigurationException
        first = str(error).splitlines()[0]
        raise HandlensError(
            f"device {device!r} x {devices} cannot be had here ({first})",
            "try --device auto" if devices == 1 else "give fewer --devices, or none",
        ) from error


def _check_precision(precision: str, device: str) -> None:
    if precision == "16-mixed" and device == "cpu":  # lightning-fabric would take bfloat16 in its place
        raise HandlensError(
            "precision 16-mixed is for graphics cards",
            "use bf16-mixed or auto; where a run goes on, write bf16-mixed into its recipe.toml",
        )


def _begin(folder: Path, recipe: Recipe, data: Data, named: bool) -> Path:
    """Make the run's folder with what a resumed run needs; when that fails there is none.

    It must be new: another training may have made it in the meantime. Then one that was not `named` is the next.
    """
    files.make_folder(folder.parent)
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            if named:
                _check_free(folder)
                continue
            stem, _, number = folder.name.rpartition("-")
            folder = folder.with_name(f"{stem}-{int(number) + 1}")
        except OSError as error:
            raise files.disk_error(error, folder) from error
    try:
        write_split(folder / files.SPLIT, data.splits, data.sha256, recipe.seed)
        if recipe.continue_run:
            keep_earlier(folder, Path(recipe.continue_run))
        recipe.write(folder / files.RECIPE)  # the last: with it a run that was killed can be resumed
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def is_finished(folder: Path) -> bool:
    """Whether a run has been judged, which is the last thing that is done."""
    if (folder / files.STATE).is_file() or not (folder / files.FACTS).is_file():
        return False
    # Runs of earlier versions do not say that they were judged.
    return not {"judged", "test", "validation"}.isdisjoint(checkpoint.read_facts(folder)["metrics"])


def settled(given: Mapping[str, Any], watcher: Watcher) -> dict[str, Any]:
    """Paths made absolute; mode and weights imply each other where one is left out, or does not go with the other."""
    given = dict(given)
    for name in _PATHS:  # absolute: the run is used from anywhere
        if isinstance(value := given.get(name), (str, os.PathLike)) and value and value not in ("imagenet", "none"):
            given[name] = absolute(value)
    if given.get("mode") == "scratch":
        given.setdefault("weights", "none")
        if given["weights"] != "none":
            raise HandlensError(
                f"--mode scratch starts from random weights, and --weights is {given['weights']}", "drop one of the two"
            )
    elif given.get("weights") == "none" and not given.get("continue_run") and given.get("mode", "full") == "full":
        if "mode" in given:
            watcher.note("mode scratch is taken in place of full, which fine-tunes weights: --weights is none")
        given["mode"] = "scratch"
    return given


def absolute(path: str | os.PathLike[str]) -> str:
    """Where something is; what is not there as it is given: it may be a published set's name."""
    place = os.path.expanduser(path)
    return os.path.abspath(place) if os.path.exists(place) else os.fspath(path)


def checked(given: Mapping[str, Any], watcher: Watcher) -> Recipe:
    """What is given, checked before the photos are looked at: a draft of the recipe."""
    known = {field.name for field in dataclasses.fields(Recipe)}
    for name in given:
        if name not in known:
            raise HandlensError(f"a recipe has no {name!r}", f"it has {', '.join(sorted(known))}")
    if given.get("add") and not given.get("continue_run"):
        raise HandlensError("--add needs the run that it adds to", "handlens train --continue RUN --add PHOTOS")
    if given.get("prune") and not given.get("continue_run"):
        raise HandlensError("--prune makes a trained network smaller", "name its run: --continue RUN --prune 0.3")
    if not given.get("photos") and not given.get("continue_run"):
        raise HandlensError("no photos were given", "name a folder of photos, or flower_photos")
    need("train", NEEDED)
    draft = choose([100, 100], given)
    start.check_mode(draft)
    if draft.teacher:
        draft = distil.sized(draft, given)
    if not draft.continue_run:
        arguments: dict[str, Any] = {"width": draft.width} if draft.width != 1 else {}
        if draft.weights not in ("imagenet", "none"):
            fetching = counter(watcher, "downloading weights")
            arguments = weights.find(draft.net, draft.weights, draft.width, fetching).arguments
        net = nets.on_meta(draft.net, **arguments)
        for px in (draft.image_px, *draft.crops_px):
            nets.check_input(net, px)
        if draft.weights == "imagenet":
            weights.best(draft.net, draft.width)
    if draft.unknown:  # it is used when the training is over
        unknown.check_halves(draft.unknown, counter(watcher, "looking at unknown photos"))
    return draft


def fetch(recipe: Recipe, watcher: Watcher) -> None:
    """Download what a recipe names and is not here yet: published photos, ImageNet weights.

    Raises HandlensError where that cannot be done, or where the photos are none that one can train on.
    """
    if recipe.photos and not recipe.continue_run:
        photos_room.check_trainable(photos_room.scan(recipe.photos, counter(watcher, "downloading photos")))
    if recipe.weights == "imagenet":
        weights.find(recipe.net, recipe.weights, recipe.width, counter(watcher, "downloading weights"))


def _interrupted(out: str | os.PathLike[str] | None) -> Path:
    """The folder of a run that can be gone on with. Raises HandlensError for any other."""
    folder = Path(out or "")
    if not out or not (folder / files.RECIPE).is_file():
        raise HandlensError(f"{out or 'no folder'} is no interrupted run", "name its folder: --resume --out RUN")
    if is_finished(folder):
        raise HandlensError(f"{folder} is finished", f"`handlens evaluate {quoted(folder)}` shows its figures")
    return folder


def _check_there(folder: Path, recipe: Recipe) -> None:
    """Raise HandlensError where what an interrupted run's recipe names beside its photos is gone from its place."""
    for name in _PATHS[1:]:
        path = getattr(recipe, name)
        if os.path.isabs(path) and not os.path.exists(path):  # else it is a published one's name
            raise HandlensError(
                f"{folder} was begun with {name} {path}, which is no longer there",
                f"put it back, or say where it is now as `{name}` in {folder / files.RECIPE}",
            )


def _check_classes(folder: Path, classes: Sequence[str]) -> None:
    """Raise HandlensError where the photos of an interrupted run have other classes than it was begun with."""
    begun = files.read_json(folder / files.SPLIT).get("classes")  # runs of earlier versions do not tell
    if begun is None or begun == list(classes):
        return
    gone, new = [name for name in begun if name not in classes], [name for name in classes if name not in begun]
    differing = [*([f"without {listed(gone)}"] if gone else []), *([f"with {listed(new)}"] if new else [])]
    raise HandlensError(
        f"the photos of {folder} have other classes now than it was begun with: "
        f"{' and '.join(differing) or 'they are in another order'}",
        "name the folders as before, or begin anew",
    )


def _check_free(folder: Path) -> None:
    """Raise HandlensError where there is something at a new run's place, or nothing can be made there."""
    if os.path.lexists(folder):
        begun = (folder / files.RECIPE).is_file() and not is_finished(folder)
        if begun:
            check_alone(folder)
        hint = f"go on with: handlens train --resume --out {quoted(folder)}" if begun else "choose another --out"
        raise HandlensError(f"{folder} exists already", f"{hint}, or remove it")
    files.check_place(folder)


def _folder(recipe: Recipe) -> Path:
    """The next free one below `runs`, for a run that was given none."""
    source = recipe.continue_run or recipe.photos
    of = Path(source).resolve().name[:50]  # a name may have 255 bytes, and a character up to four of them
    name = re.sub(r"[^\w.-]+", "-", f"{of}-{recipe.net}-{recipe.mode}")
    ends = [path.name.rpartition("-")[2] for path in Path("runs").glob(f"{name}-*")]
    return Path("runs", f"{name}-{max([0, *(int(end) for end in ends if end.isdecimal())]) + 1}")
