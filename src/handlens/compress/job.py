"""`export`: from a run to a bundle, in float32, float16, bfloat16 or INT8."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from handlens import checkpoint, files
from handlens import export as export_room
from handlens.bundle import PRECISIONS
from handlens.compress import ladder
from handlens.errors import HandlensError, counted, not_one_of
from handlens.export import job
from handlens.export.converting import check_installed
from handlens.export.job import Exported, Progress, Source
from handlens.photos import Photos
from handlens.photos.split import contents
from handlens.run import openvino_runtime
from handlens.run.artifact import check_threads
from handlens.train import Recipe, several
from handlens.train.data import Data, counted_in, data_of, joined, look, other_class, sources


def export(
    run: str | os.PathLike[str],
    to: str = "onnx",
    precision: str = "float32",
    *,
    out: str | os.PathLike[str],
    photos: str | os.PathLike[str] | None = None,
    max_drop: float = 0.005,
    num_calibration: int = ladder.CALIBRATION_PHOTOS,
    weights_only: bool = False,
    reduce_range: bool = False,
    threads: int = 0,
    licence: str = "",
    tried: Callable[[ladder.Rung], None] = lambda rung: None,
    note: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
) -> Exported:
    """Make a bundle of a trained run for "onnx", "litert", "executorch", "openvino" or "coreml".

    precision: "float32", "float16", "bfloat16" or "int8". photos: labelled photos to calibrate INT8 with, or the run's
    own at a new place; by default the run's validation split, and training photos of classes that have none there.
    max_drop: the fraction of top-1 that INT8 may lose on the validation split, of few photos one answer if it is not 0.
    weights_only: INT8 by the weights alone, see `ladder.climb`. The bundle is written only if its file answers the
    run's test photos as the network does (float), or loses no more than `max_drop` or 1.96 paired standard errors,
    whichever is larger (INT8, and bfloat16, which also answers 98 % of them alike). note: is told where the run's
    photos have other classes now, or are gone.
    Raises HandlensError otherwise, and for a run, a folder or an option that does not fit.
    """
    if precision not in PRECISIONS:
        raise not_one_of("precision", precision, PRECISIONS)
    export_room.check_target(to, precision)
    if precision == "int8":
        ladder.check_target(to, weights_only)
    if not 0 <= max_drop <= 1:
        raise HandlensError(f"max_drop is {max_drop}, expected a fraction of 0 to 1", "0.005 is half a point")
    if reduce_range and (precision, to) != ("int8", "onnx"):
        raise HandlensError("--reduce-range is for INT8 on onnxruntime", "leave it out, or give --to onnx --int8")
    if reduce_range and weights_only:
        raise HandlensError(
            "--reduce-range is for arithmetic in integers, which --weights-only has none of", "leave one of them out"
        )
    check_threads(threads)
    check_installed(to, int8=precision == "int8")
    if precision == "bfloat16" and not openvino_runtime.computes_bfloat16():
        raise HandlensError(
            "OpenVINO does not compute in bfloat16 on this processor, so that nothing could be proven of such a file",
            "export on one with AVX512, or leave out --bfloat16",
        )
    out = job.check_out(out)
    found = checkpoint.load(run)
    splits, calibration = own_splits(run, found, photos, note)
    wanted = {"test": "is proven"} if to != "coreml" else {}  # which does not run here
    wanted |= {"validation": "is chosen"} if precision == "int8" else {}
    for name, what_for in wanted.items():
        if not len(splits[name]):
            raise HandlensError(
                f"{run} has no {name} photos, by which the file {what_for}", "train with more photos of each class"
            )
    names = [_name(photos) for photos in sources(Recipe.of(found.recipe), Path(run))]
    source = Source.of(Path(run).resolve().name, found, splits, " + ".join(names))
    if precision != "int8":
        if progress:
            progress("converting", 0, 1)
        if precision == "float32":
            artifact = source.float32(to)
        else:
            artifact = export_room.convert(source.folded, found.preprocess, to, source.facts, precision)
        return job.finish(
            source,
            artifact,
            to,
            precision,
            out,
            max_drop=max_drop,
            threads=threads,
            licence=licence,
            progress=progress,
        )
    climbed = ladder.climb(
        source,
        to,
        calibration,
        max_drop,
        num_calibration=num_calibration,
        weights_only=weights_only,
        reduce_range=reduce_range,
        threads=threads,
        tried=tried,
        progress=progress,
    )
    return job.finish(
        source,
        climbed.artifact,
        to,
        precision,
        out,
        net=climbed.net,
        rungs=[{**rung.to_dict(), "chosen": rung is climbed.rung} for rung in climbed.rungs],
        max_drop=max_drop,
        threads=threads,
        licence=licence,
        progress=progress,
    )


def _name(photos: str) -> str:
    """What a set of photos is called: a fold as what it was cut from."""
    path = Path(photos)
    is_fold = path.name.startswith("fold-") and (path.parent / files.PLAN).is_file()
    return Path(several.read(path.parent).photos).name if is_fold else path.name


def own_splits(
    run: str | os.PathLike[str],
    found: checkpoint.Checkpoint,
    photos: str | os.PathLike[str] | None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Photos], Photos]:
    """The run's splits in the checkpoint's classes, and the photos to calibrate with: never those of its test split.

    These are the run's validation photos, with training photos of classes that have none there. `photos` are the run's
    own at a new place if they hold all photos of its splits; else others to calibrate with, and the run's own must be
    where its recipe says. Raises HandlensError where the run's own are not found, but for added ones whose folder is
    gone: validation and training go without them.
    """
    stored = Path(run, files.SPLIT)
    if not stored.is_file():
        raise HandlensError(f"{run} has no {files.SPLIT}, which says what its photos are", "copy the whole run folder")
    recipe = Recipe.of(found.recipe)

    def in_its_classes(data: Data) -> dict[str, Photos]:
        if data.relabelled:
            note(other_class(data.relabelled, run))
        if data.gone:
            few = counted(len(data.gone), "photo")
            note(f"{few} of {run} {'is' if len(data.gone) == 1 else 'are'} no longer there, none of its test photos")
        return {name: counted_in(part, found.classes) for name, part in data.splits.items()}

    if photos is None:
        splits = in_its_classes(data_of(recipe, stored, asked=("test",)))
        return splits, _of_every_class(splits)
    try:
        moved = dataclasses.replace(recipe, photos=os.fspath(photos))
        splits = in_its_classes(data_of(moved, stored, asked=("test",)))
        return splits, _of_every_class(splits)
    except HandlensError as why_not:
        given, findings, _ = look(os.fspath(photos), None, is_split=True)
        try:
            data = data_of(recipe, stored, asked=("test",))
        except HandlensError as gone:
            # Some of the run's own are there, at a new place, but not all of them; or others, to calibrate with.
            raise (gone if contents(stored).isdisjoint(findings.sha256.values()) else why_not) from None
    note(f"{os.fspath(photos)} holds others than the run's own photos: INT8 is calibrated with them, no more")
    held_out = {data.sha256[path] for path in data.splits["test"].paths}
    others = given.without([path for path in given.paths if findings.sha256[path] in held_out])
    return in_its_classes(data), counted_in(others, found.classes)


def _of_every_class(splits: Mapping[str, Photos]) -> Photos:
    validation, train = splits["validation"], splits["train"]
    lacking = [label for label, number in enumerate(validation.counts()) if not number]
    more = train.select(np.flatnonzero(np.isin(train.labels, lacking)))
    return joined(validation, more, validation.classes) if len(more) else validation
