"""`handlens explain`: what a trained network looks at, and what it has learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from handlens.nets import Net
    from handlens.preprocess import Preprocess
    from handlens.run import Classifier


class What(StrEnum):
    gradcam = "gradcam"
    rollout = "rollout"
    feature_maps = "feature-maps"
    kernels = "kernels"
    dead_kernels = "dead-kernels"
    positions = "positions"
    gates = "gates"


OF_PHOTOS = (What.gradcam, What.rollout, What.feature_maps)  # each photo by itself
WITH_LAYER = (What.gradcam, What.feature_maps, What.gates)
BATCH = 32


def explain(
    run: str = typer.Argument(..., metavar="RUN", help="A run's folder, or a net's name together with --weights."),
    photos: list[str] = typer.Argument(
        None,
        metavar="PHOTO",
        show_default=False,
        help="Photos, folders or globs; for gates, one source of photos with labels (default: the run's test split).",
    ),
    what: What | None = typer.Option(
        None, help="What to look at. Default: with photos, gradcam (rollout for a ViT); without, what the weights show."
    ),
    weights: str = typer.Option("", help="A weight file for the net named in place of a run, or `imagenet`."),
    layer: str = typer.Option(
        "", help="For gradcam and feature-maps: a layer's name or a stage's number; for gates: a gate's name."
    ),
    class_: str = typer.Option("", "--class", help="For gradcam: the class to explain in place of the answer."),
    out: Path = typer.Option(Path("explained"), help="The folder for the pictures."),
    json: bool = typer.Option(False, "--json", help="The numbers, as one JSON value on standard output."),
) -> None:
    """Show what a trained network looks at, or what it has learned.

    \b
    gradcam       where a photo speaks for a class, at the last convolutional stage
    rollout       how much attention of a Vision Transformer each part of a photo gets
    feature-maps  what the stages, or one --layer, make of a photo
    kernels       the weights that read the photo
    dead-kernels  depthwise kernels with hardly any weight, by layer
    positions     how alike a Vision Transformer's position embeddings are
    gates         how squeeze-and-excite opens for each class, by layer

    \b
    Examples:
      handlens explain runs/flowers garden.jpg
      handlens explain runs/flowers garden.jpg --class tulips --out why
      handlens explain runs/flowers garden.jpg --what feature-maps --layer features.3
      handlens explain runs/flowers --what dead-kernels --json
      handlens explain efficientnet_lite0 --weights imagenet
    """
    from handlens import files
    from handlens.cli import screen
    from handlens.errors import HandlensError, quoted
    from handlens.photos.scan import check_no_photos

    given = list(photos or [])
    if layer and (what not in (None, *WITH_LAYER) or (what is None and not given)):
        raise HandlensError("--layer is for gradcam, feature-maps and gates", "leave it out, or change --what")
    if what in OF_PHOTOS and not given:
        hint = f"handlens explain {quoted(run)} PHOTO"
        raise HandlensError(f"--what {what} looks at photos, and none is named", hint)
    if given and what in (What.kernels, What.dead_kernels, What.positions):
        raise HandlensError(f"--what {what} looks at no photos", f"leave out {given[0]}")
    if class_ and (what not in (None, What.gradcam) or not given):
        raise HandlensError("--class is for gradcam of photos", "leave it out")
    files.check_place(out / "picture.png")
    check_no_photos(out)
    subject = load(run, weights)
    if subject.note:
        screen.note(subject.note)
    wanted = [what] if what else _fitting(subject, bool(given))
    if layer and wanted[0] not in WITH_LAYER:
        raise HandlensError(f"{wanted[0]} looks at all layers together", "leave out --layer, or say --what")
    if class_ and What.gradcam not in wanted:
        raise HandlensError(f"{wanted[0]} is the same for every class", "leave out --class")
    found: dict[str, Any] = {"net": subject.name}
    for one in wanted:
        key = one.replace("-", "_")
        if one in (What.gradcam, What.rollout):
            found[key] = _saliency(subject, one, given, layer, class_, out, json)
        elif one == What.feature_maps:
            found[key] = _feature_maps(subject, given, layer, out, json)
        elif one == What.gates:
            found[key] = _gates(subject, run if not weights else "", given, layer, out, json)
        else:
            found[key] = _OF_WEIGHTS[one](subject, out, json)
    if json:
        screen.print_json(found)


@dataclasses.dataclass(frozen=True)
class Subject:
    """The network to explain, and as it answers in `predict`. `note` is what its user should know of it, or ""."""

    net: Net
    name: str
    preprocess: Preprocess
    classifier: Classifier
    note: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return self.classifier.classes


def load(run: str, weights: str = "") -> Subject:
    """The network of a run's folder, or of a net's name and a weight file, in evaluation mode on the CPU."""
    from handlens import run as run_room
    from handlens.cli import screen

    if not weights:
        from handlens import checkpoint

        found, answering = checkpoint.load(run), run_room.load(run)
        return Subject(found.net.eval(), found.name, found.preprocess, answering)
    from handlens.nets import weights as published
    from handlens.run import torch_runtime

    with screen.progress("downloading") as update:
        file = published.find(run, weights, progress=update)
    net = published.load(file).eval()
    width = len(str(net.num_classes - 1))
    classes = tuple(f"{index:0{width}}" for index in range(net.num_classes))
    lacking = "has no classifier: answers are of random weights" if file.num_classes is None else ""
    infer = torch_runtime.predictor(net, file.preprocess, device="cpu")
    answering = run_room.Classifier(classes=classes, preprocess=file.preprocess, infer=infer, net=run)
    note = f"{weights} {lacking or 'names no classes: they are numbers'}"
    return Subject(net, run, file.preprocess, answering, note)


def _fitting(subject: Subject, photos: bool) -> list[What]:
    """What to look at when nothing is named."""
    from handlens.errors import HandlensError
    from handlens.explain import kernels, saliency

    method = saliency.method_for(subject.net)
    if photos:
        return [What(method)]
    if method == "rollout":
        return [What.kernels, What.positions]
    try:
        kernels.depthwise(subject.net)
    except HandlensError:
        return [What.kernels]
    return [What.kernels, What.dead_kernels]


# ---- of photos -------------------------------------------------------------------------------------------------------
def _photos(given: list[str], preprocess: Preprocess) -> Iterator[tuple[Path, np.ndarray]]:
    """The photos that can be read, upright, with the pixels that `preprocess.load` would fit; the rest are named.

    One after the other: a folder of large ones does not fit into memory. Exit code 2 where none can be read.
    """
    import numpy as np

    from handlens.cli import screen
    from handlens.cli.predict import gather
    from handlens.errors import PhotoError
    from handlens.preprocess import open_photo

    px = preprocess.resize_px if preprocess.resize == "crop" else preprocess.image_px
    at_least_px = None if preprocess.interpolation == "nearest" else px
    num_read, paths = 0, gather(given)
    with screen.progress("looking at photos", len(paths)) as update:
        for number, path in enumerate(paths):
            if number:
                update(number)
            try:
                photo = np.array(open_photo(path, at_least_px=at_least_px))
            except PhotoError as error:
                screen.note(f"left out: {error}")
                continue
            num_read += 1
            yield path, photo
    if not num_read:
        raise typer.Exit(2)


def _saliency(
    subject: Subject, what: What, given: list[str], layer: str, class_: str, out: Path, json: bool
) -> list[dict[str, Any]]:
    from PIL import Image

    from handlens.cli import screen
    from handlens.explain import overlay, saliency

    target = _class(subject, class_) if class_ else None
    method: saliency.Method = "gradcam" if what == What.gradcam else "rollout"
    look = saliency.explainer(subject.net, subject.preprocess, method, layer, longest_px=overlay.LONGEST_PX)
    named = [what, *([layer] if layer else []), *([class_] if class_ else [])]
    index = {name: number for number, name in enumerate(subject.classes)}
    results: list[dict[str, Any]] = []
    names = _Names(out)
    for path, photo in _photos(given, subject.preprocess):
        seen = subject.preprocess.fit(Image.fromarray(photo))[None]
        [said] = subject.classifier.answers(seen, top=len(subject.classes))
        probabilities = {index[guess.name]: guess.probability for guess in said.guesses}
        answer = index[said.guesses[0].name]
        chosen = answer if target is None else target
        heat = look(photo, chosen)
        results.append(
            {
                "photo": str(path),
                "answer": subject.classes[answer],
                "probability": probabilities[answer],
                "unknown": said.unknown,
                "score": said.score,
                **({"class": subject.classes[chosen]} if method == "gradcam" else {}),
                **({"class_probability": probabilities[chosen]} if method == "gradcam" else {}),
                "focus": overlay.focus(heat),
                "picture": names.write("-".join([*named, path.stem]), overlay.beside(photo, heat)),
            }
        )
    if subject.classifier.note:
        screen.note(subject.classifier.note)
    if not json:
        rows = [
            (
                line["picture"],  # first, so that it is never broken into lines
                line["photo"],
                f"{'unknown, nearest ' if line['unknown'] else ''}{line['answer']} {line['probability']:.1%}",
                line.get("class", "any"),
                "nowhere" if line["focus"] is None else "{:.0%}, {:.0%}".format(*line["focus"]),
            )
            for line in results
        ]
        screen.table("", ("picture", "photo", "answer", "explained", "centre (from left, top)"), rows)
    return results


def _class(subject: Subject, name: str) -> int:
    import difflib

    from handlens.errors import HandlensError

    if name not in subject.classes:
        near = difflib.get_close_matches(name, subject.classes, n=3, cutoff=0.4)
        near = [*near, *(other for other in subject.classes if other not in near)][:5]
        raise HandlensError(f"{subject.name} knows no class {name!r}", f"its classes are such as {', '.join(near)}")
    return subject.classes.index(name)


def _feature_maps(subject: Subject, given: list[str], layer: str, out: Path, json: bool) -> list[dict[str, Any]]:
    from PIL import Image

    from handlens.cli import screen
    from handlens.explain import figures, layers

    results, rows = [], []
    names = _Names(out)
    for path, photo in _photos(given, subject.preprocess):
        seen = subject.preprocess.fit(Image.fromarray(photo))
        if layer:
            found = [layers.feature_maps(subject.net, subject.preprocess, seen[None], layer)]
            picture = figures.feature_maps(found[0])
        else:
            found = layers.stages(subject.net, subject.preprocess, seen[None])
            picture = figures.stages(seen, found)
        name = names.write("-".join(["feature-maps", *([layer] if layer else []), path.stem]), picture)
        described = [{"layer": one.layer, **layers.describe(one.values[0])} for one in found]
        results.append({"photo": str(path), "layers": described, "picture": name})
        for line in described:
            zero = sum(line["zero_share"]) / len(line["zero_share"])
            rows.append((str(path), line["layer"] or "tokens", " x ".join(map(str, line["shape"])), f"{zero:.1%}"))
        if not json:
            screen.note(f"the picture is {name}")
    if not json:
        screen.table("", ("photo", "layer", "maps", "cells at 0"), rows)
    return results


def _gates(subject: Subject, run: str, given: list[str], layer: str, out: Path, json: bool) -> dict[str, Any]:
    import numpy as np

    from handlens import photos as photos_room
    from handlens.cli import screen
    from handlens.cli.labelled import runs_split
    from handlens.errors import HandlensError
    from handlens.explain import figures, gates
    from handlens.figures import drawable

    size = subject.preprocess.image_px
    named = list(gates.record(subject.net, subject.preprocess, np.zeros((1, size, size, 3), np.uint8)))
    if layer and layer not in named:
        raise HandlensError(f"{layer!r} is no squeeze-and-excite layer", f"they are {', '.join(named)}")
    if len(given) > 1 or not (given or run):
        raise HandlensError("gates are compared on one source of photos with labels", "name a folder, CSV or set")
    if given:
        chosen = photos_room.scan(given[0])
        how = f"all photos of {chosen.root.resolve().name}"
    else:
        chosen, how, *_ = runs_split(run)
    chosen = chosen.without([path for path, _ in photos_room.examine(chosen).broken])
    parts, labels, done = [], [], 0
    with screen.progress("looking at gates", len(chosen)) as update:
        for images, some in photos_room.batches(chosen, subject.preprocess, BATCH):
            parts.append(gates.record(subject.net, subject.preprocess, images))
            labels.append(some)
            done += len(images)
            update(done, len(chosen))
    if done < 2:
        raise HandlensError("there are not two photos to compare gates on", "name others")
    found = [
        gates.statistics(
            name, np.concatenate([part[name] for part in parts]), np.concatenate(labels), len(chosen.classes)
        )
        for name in named
    ]
    picture = _Names(out).write("gates", figures.gates(found, drawable(chosen.classes), layer))
    layers = [one.to_dict(chosen.classes) for one in found]
    if not json:
        screen.say(f"{done} photos; {how}")
        rows = [
            (
                line["layer"],
                line["num_channels"],
                f"{line['layer_share']:.1%}",
                line["num_shut"],
                line["num_open"],
                _best_channel(line),
            )
            for line in layers
        ]
        columns = ("layer", "gates", "variance between classes", "always shut", "always open", "best channel")
        screen.table("", columns, rows)
        screen.say(f"by chance {found[0].chance_share:.1%} of the variance would lie between classes")
        screen.note(f"the picture is {picture}")
    return {"num_photos": done, "split": how, "classes": list(chosen.classes), "layers": layers, "picture": picture}


def _best_channel(line: dict[str, Any]) -> str:
    best = line["best_channels"]
    return "{channel}: {class_share:.0%}, most open for {most_open_for}".format(**best[0]) if best else "none moves"


# ---- of weights ------------------------------------------------------------------------------------------------------
def _kernels(subject: Subject, out: Path, json: bool) -> dict[str, Any]:
    from handlens.cli import screen
    from handlens.explain import figures, kernels

    layer, values = kernels.first_layer(subject.net, subject.preprocess)
    picture = _Names(out).write("kernels", figures.kernels(values))
    numbers = kernels.describe(values)
    if not json:
        coloured = sum(share > 0.5 for share in numbers["colour_share"])
        screen.say(
            f"{layer}: {len(values)} kernels of {values.shape[1]} x {values.shape[2]} px; "
            f"{coloured} see mostly colour, {len(values) - coloured} mostly light and dark"
        )
        screen.note(f"the picture is {picture}")
    return {"layer": layer, **numbers, "picture": picture}


def _dead_kernels(subject: Subject, out: Path, json: bool) -> dict[str, Any]:
    from handlens.cli import screen
    from handlens.explain import figures, kernels

    found = kernels.depthwise(subject.net)
    picture = _Names(out).write("dead-kernels", figures.depthwise(found))
    layers = [layer.to_dict() for layer in found]
    num_dead, num_silent, num = (sum(line[key] for line in layers) for key in ("num_dead", "num_silent", "num_kernels"))
    if not json:
        rows = [(line["layer"], line["num_kernels"], line["num_dead"], line["num_silent"]) for line in layers]
        screen.table("", ("layer", "kernels", "dead", "silent"), [*rows, ("all", num, num_dead, num_silent)])
        screen.say(
            f"dead: batch norm's scale counted in, below {kernels.THRESHOLD:g} of the layer's median weight; "
            "silent: with weight, but on the training photos the channel hardly varied"
        )
        screen.note(f"the picture is {picture}")
    return {
        "threshold": kernels.THRESHOLD,
        "num_kernels": num,
        "num_dead": num_dead,
        "num_silent": num_silent,
        "layers": layers,
        "picture": picture,
    }


def _positions(subject: Subject, out: Path, json: bool) -> dict[str, Any]:
    from handlens.cli import screen
    from handlens.explain import figures, positions

    maps = positions.similarity(positions.table(subject.net))
    picture = _Names(out).write("positions", figures.positions(maps))
    numbers = positions.describe(maps)
    if not json:
        screen.say(f"{numbers['side']} x {numbers['side']} patches; cosine similarity to the others, on average:")
        rows = [
            (name.replace("_", " "), "–" if numbers[name] is None else f"{numbers[name]:.3f}")
            for name in ("same_row", "same_column", "elsewhere")
        ]
        screen.table("", ("patches", "similarity"), rows)
        screen.say(f"most alike to one of the eight around it: {numbers['neighbour_share']:.1%} of the patches")
        screen.note(f"the picture is {picture}")
    return {**numbers, "picture": picture}


_OF_WEIGHTS: dict[What, Callable[[Subject, Path, bool], dict[str, Any]]] = {
    What.kernels: _kernels,
    What.dead_kernels: _dead_kernels,
    What.positions: _positions,
}


class _Names:
    """Writes pictures into a folder; photos of the same name in one call get names of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.taken = folder, set[str]()

    def write(self, name: str, png: bytes) -> str:
        from handlens import files

        name = files.free_name(files.safe_name(name), lambda tried: tried.casefold() not in self.taken)
        self.taken.add(name.casefold())
        files.make_own_folder(self.folder)
        path = self.folder / f"{name}.png"
        with files.atomic(path) as file:
            file.write(png)
        return str(path)
