"""What a training run leaves: `model.safetensors` with the weights and `handlens.json` with everything else.

Beside them `familiar.safetensors`, where the run knows what photos of its classes look like to the network.

The JSON holds the net's name and arguments, the classes in order, the pixel contract, the recipe and the metrics; how
its probabilities are calibrated, and below which score a photo is unknown. No pickle: a checkpoint from a stranger can
be loaded safely.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from handlens import __version__, files, nets
from handlens.errors import HandlensError, quoted
from handlens.nets import Net
from handlens.nets.familiar import Familiar
from handlens.preprocess import Preprocess

FORMAT_VERSION = 1
_MEMBERS = {  # of handlens.json, with the kind of value each must hold
    "format_version": int,
    "handlens_version": str,
    "net": str,
    "arguments": dict,
    "classes": list,
    "preprocess": dict,
    "recipe": dict,
    "metrics": dict,
    "weights_sha256": str,
}


@dataclasses.dataclass(kw_only=True)
class Checkpoint:
    """A trained network with all that is needed to use it.

    `arguments` are those of `nets.create` beside the number of classes; the optional "head_hidden" is the width of an
    extra fully connected layer before the last, as `nets.replace_head` makes it. `recipe` and `metrics` are JSON-ready.
    `calibration` holds at least "temperature", a number above 0, and `rejection` is `evaluate.unknown.Rejection` as a
    dict; None where they were not fitted. The network is given the temperature, by which `nets.pixels` divides logits.
    What the network has as `familiar` is kept too.
    """

    net: Net
    name: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    preprocess: Preprocess
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    rejection: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.net.temperature = float(self.calibration["temperature"]) if self.calibration else 1.0


def build(name: str, num_classes: int, arguments: dict[str, Any]) -> Net:
    """The network of a checkpoint with random weights: `nets.create`, then the hidden layer if there is one.

    Raises HandlensError where there is no such network.
    """
    own = dict(arguments)
    hidden = own.pop("head_hidden", 0)
    try:
        net = nets.create(name, num_classes, **own)
        return nets.replace_head(net, num_classes, hidden=hidden) if hidden else net
    except HandlensError:
        raise
    except Exception as error:  # torch raises many kinds for numbers that make no sense
        raise HandlensError(f"{name} cannot be built with {arguments} ({error})", "train again") from error


def save(folder: str | os.PathLike[str], checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
    """Write the files into `folder`, made if need be; `dtype` is that of the stored weights.

    Raises HandlensError when the classes are not as many as the logits, what describes it is no JSON, or the disk is
    full.
    """
    if len(checkpoint.classes) != checkpoint.net.num_classes:
        raise HandlensError(
            f"{len(checkpoint.classes)} classes were given for a net with {checkpoint.net.num_classes} logits",
            "give one class a logit",
        )
    data = safetensors.torch.save(
        {key: _stored(value, dtype) for key, value in checkpoint.net.state_dict().items()}, metadata={"format": "pt"}
    )
    familiar, centres = checkpoint.net.familiar, b""
    if familiar:
        centres = safetensors.torch.save({"centres": familiar.centres.contiguous()})
    facts = {
        "format_version": FORMAT_VERSION,
        "handlens_version": __version__,
        "net": checkpoint.name,
        "arguments": checkpoint.arguments,
        "classes": list(checkpoint.classes),
        "preprocess": checkpoint.preprocess.to_dict(),
        "recipe": checkpoint.recipe,
        "metrics": checkpoint.metrics,
        "calibration": checkpoint.calibration,
        "rejection": checkpoint.rejection,
        "familiar": {**familiar.to_dict(), "sha256": hashlib.sha256(centres).hexdigest()} if familiar else None,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
    }
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:  # before a file is written: what is there already stays whole
        raise HandlensError(
            f"the checkpoint's recipe, metrics or arguments cannot be written as JSON ({error})",
            "give strings and Python's own finite numbers",
        ) from error
    with files.atomic(Path(folder, files.WEIGHTS)) as file:
        file.write(data)
    if familiar:
        with files.atomic(Path(folder, files.FAMILIAR)) as file:
            file.write(centres)
    files.write_json(Path(folder, files.FACTS), facts)


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu()
    return (value.to(dtype) if value.is_floating_point() else value).contiguous()


def read_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The members of `handlens.json`, each of its kind. Raises HandlensError for anything that is no checkpoint."""
    folder = Path(folder)
    path = folder / files.FACTS
    if not folder.is_dir():
        if folder.is_file() and folder.suffix.lower() != ".zip":
            raise HandlensError(
                f"{folder} is neither a run's folder nor a bundle",
                "a run comes before photos: name the run first",
            )
        if folder.is_file():
            raise HandlensError(f"{folder} is a file, no run folder", "name the run it was made from")
        raise HandlensError(f"there is no run folder {folder}", "`handlens train PHOTOS` makes one")
    if not path.is_file():
        resumed = f"go on with `handlens train --resume --out {quoted(folder)}`"
        within = sorted(found.parent for found in folder.glob(f"*/{files.FACTS}"))
        named = f"name one of the runs in it, such as {within[0]}" if within else "`handlens train PHOTOS` makes one"
        hint = resumed if (folder / files.RECIPE).is_file() else named
        raise HandlensError(f"{folder} is no finished run: it has no {files.FACTS}", hint)
    facts = files.read_json(path)
    if not isinstance(facts, dict):
        raise HandlensError(f"{path} is no checkpoint: expected a JSON object", "it may be damaged; train again")
    version = facts.get("format_version")
    if version != FORMAT_VERSION:
        raise HandlensError(
            f"{folder} is a checkpoint of format {version}, this handlens reads format {FORMAT_VERSION}",
            "use the handlens that wrote it, or train again",
        )
    for member, kind in _MEMBERS.items():
        if not isinstance(facts.get(member), kind):
            raise HandlensError(f"{path} has no proper {member!r}", "it may be damaged; train again")
    if not facts["classes"] or not all(isinstance(name, str) for name in facts["classes"]):
        raise HandlensError(f"{path} has no proper 'classes'", "it may be damaged; train again")
    if len(set(facts["classes"])) < len(facts["classes"]):
        raise HandlensError(f"{path} names a class twice", "it may be damaged; train again")
    for member in ("calibration", "rejection", "familiar"):  # runs from before there were these lack them
        if not isinstance(facts.setdefault(member, None), (dict, type(None))):
            raise HandlensError(f"{path} has no proper {member!r}", "it may be damaged; train again")
    if facts["calibration"] is not None and not _is_temperature(facts["calibration"].get("temperature")):
        raise HandlensError(f"{path} has no proper temperature, a number above 0", "it may be damaged; train again")
    return facts


def _is_temperature(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def load(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint: the network in evaluation mode on the CPU, float32 whatever was stored.

    Raises HandlensError for a folder that is none, another format version, missing or damaged members, weights that
    are not those the JSON was written with, or a head that does not give one logit a class.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    path = folder / files.WEIGHTS
    stored = _tensors(path, facts["weights_sha256"])
    classes = tuple(facts["classes"])
    net = build(facts["net"], len(classes), facts["arguments"])
    head = stored.get(f"classifier.{len(net.classifier) - 1}.bias")
    if head is not None and len(head) != len(classes):
        raise HandlensError(
            f"{folder} names {len(classes)} classes, but its head gives {len(head)} logits", "train again"
        )
    _fill(net, stored, path)
    net.familiar = _familiar(folder / files.FAMILIAR, net, facts["familiar"])
    return Checkpoint(
        net=net.eval(),
        name=facts["net"],
        arguments=facts["arguments"],
        classes=classes,
        preprocess=Preprocess.from_dict(facts["preprocess"]),
        recipe=facts["recipe"],
        metrics=facts["metrics"],
        calibration=facts["calibration"],
        rejection=facts["rejection"],
    )


def _tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """What a file of the checkpoint holds, if it is the one that the JSON was written with."""
    if not path.is_file():
        raise HandlensError(f"{path.parent} has no {path.name}", "copy the whole run folder, or train again")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise HandlensError(
            f"{path} is not the file that {files.FACTS} was written with: its SHA-256 differs",
            "copy the whole run folder again, or train again",
        )
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError) as error:
        raise HandlensError(f"{path} is no safetensors file ({error})", "train again") from error


def _familiar(path: Path, net: Net, stored: dict[str, Any] | None) -> Familiar | None:
    if stored is None:
        return None
    tensors = _tensors(path, str(stored.get("sha256")))
    try:
        found = Familiar(centres=tensors["centres"], **{key: value for key, value in stored.items() if key != "sha256"})
        found.check(net)
    except (KeyError, TypeError, HandlensError):
        raise HandlensError(f"{path} does not fit the net of its run", "it may be damaged; train again") from None
    return found


def _fill(net: Net, stored: dict[str, Tensor], path: Path) -> None:
    own = net.state_dict()
    differing = [
        f"{key} is {_shape(stored, key)}, expected {_shape(own, key)}"
        for key in sorted(own.keys() | stored.keys())
        if _shape(stored, key) != _shape(own, key)
    ]
    if differing:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise HandlensError(f"{path} does not fit the net it names: {differing[0]}{more}", "train again")
    net.load_state_dict(stored)  # copies into the net's float32, whatever was stored


def _shape(tensors: dict[str, Tensor], key: str) -> tuple[int, ...] | str:
    return tuple(tensors[key].shape) if key in tensors else "absent"
