"""What a weight file was made for, its pixels and arguments: as something beside it or in it says, else by a guess."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from handlens import files, nets
from handlens.errors import HandlensError
from handlens.nets.published import PUBLISHED, SAME, Published
from handlens.preprocess import Preprocess

_SAID = ("mean", "std", "input_size", "crop_pct", "interpolation", "width", "bn_eps", "padding")  # of a contract
_HUB_CONFIG, _HUB_STEMS = "config.json", ("model", "pytorch_model")  # of a folder of timm's on the Hugging Face hub


class Contract(NamedTuple):
    """A file's pixel contract and the arguments of its network.

    guess: empty where something says them; else in words where they were taken from.
    """

    preprocess: Preprocess
    arguments: dict[str, Any]
    guess: str = ""


def run_of(weights: str | os.PathLike[str]) -> Path | None:
    """The folder of the run whose weight file this is, or a link to it; None for any other file, and for none."""
    path = Path(os.path.expanduser(weights))
    try:
        places = (path.parent, path.resolve().parent) if path.is_file() else ()
        return next((folder for folder in places if (folder / files.FACTS).is_file()), None)
    except OSError:  # it may not be looked at
        return None


def of_run(run: Path) -> Contract:
    """The contract that a run's folder states. Raises HandlensError where it is no run's."""
    facts = run / files.FACTS
    stored = files.read_json(facts)
    said = stored.get("arguments") if isinstance(stored, dict) else None
    said = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()} if isinstance(said, dict) else None
    values = [value for each in (said or {}).values() for value in (each if isinstance(each, tuple) else [each])]
    if said is None or not all(isinstance(value, (str, int, float)) for value in values):
        raise HandlensError(f"{facts} beside it is no run's", "put the weight file into a folder of its own")
    return Contract(Preprocess.from_dict(stored.get("preprocess")), said)


def of_file(path: Path, net: str, source: str, row: Published | None, metadata: Mapping[str, str]) -> Contract:
    """The contract of a published file, or of a local one whose tensors have the names of `source`.

    A local file's is that of the published file of its name, or of the name in timm's config.json beside it, else that
    of the file most like it; what config.json and its own metadata say counts more. Raises HandlensError where that
    makes no sense.
    """
    name, said = ("", {}) if row else _hub_config(path)
    said_by = path.with_name(_HUB_CONFIG) if said and metadata.keys().isdisjoint(_SAID) else path
    said = {**said, **metadata}
    name = name or path.stem
    known = row is not None or {"mean", "std"} <= said.keys()
    if row is None and (row := _row_named(name, net, source)):
        known = known or _plain(name).startswith(_whole(row))
    contract = Contract(row.preprocess, dict(row.arguments), f"those of {row.file}") if row else _habit(
        net, source, name)  # fmt: skip
    preprocess, arguments = contract.preprocess, contract.arguments
    try:
        if "input_size" in said:
            image_px = int(said["input_size"])
            crop_share = float(said.get("crop_pct", 0.875))
            preprocess = dataclasses.replace(preprocess, image_px=image_px, resize_px=int(image_px / crop_share))
        given: dict[str, Any] = {
            key: tuple(float(value) for value in said[key].split(",")) for key in ("mean", "std") if key in said
        }
        if "interpolation" in said:
            given["interpolation"] = said["interpolation"]
        preprocess = dataclasses.replace(preprocess, **given)
        arguments |= {key: float(said[key]) for key in ("width", "bn_eps") if key in said}
    except (ValueError, TypeError, ZeroDivisionError, HandlensError) as error:
        raise HandlensError(f"{said_by} has metadata that make no sense ({error})", "save it again") from None
    if "padding" in said:
        arguments["padding"] = "tensorflow" if said["padding"].startswith("tensorflow") else "symmetric"
    return Contract(preprocess, arguments, "" if known else contract.guess)


def same_builder(one: str, other: str) -> bool:
    """Whether two names are of networks that one function builds."""
    return one in nets.NETS and nets.entry(one).build is nets.entry(other).build


def _hub_config(path: Path) -> tuple[str, dict[str, str]]:
    """timm's config.json beside a file as the hub has it: the model's name and, like metadata, its contract."""
    config = path.with_name(_HUB_CONFIG)
    try:
        stored = files.read_json(config) if path.stem in _HUB_STEMS and config.is_file() else None
    except HandlensError:
        stored = None
    model = stored.get("architecture") if isinstance(stored, dict) else None
    cfg = stored.get("pretrained_cfg") if isinstance(stored, dict) else None
    if not isinstance(model, str) or not isinstance(cfg, dict):
        return "", {}  # another tool's
    said = {key: cfg[key] for key in ("mean", "std", "input_size", "crop_pct", "interpolation") if key in cfg}
    if isinstance(said.get("input_size"), list):
        said["input_size"] = said["input_size"][-1]
    texts = {key: ",".join(map(str, value)) if isinstance(value, list) else str(value) for key, value in said.items()}
    return f"{model}.{cfg['tag']}" if cfg.get("tag") else model, texts


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()) + "_"


def _whole(row: Published) -> str:
    """How a local file's name begins that can be no other than this published one."""
    return _plain(row.file.rsplit("/", 1)[-1].removesuffix(".pth"))


def _row_named(name: str, net: str, source: str) -> Published | None:
    """The published file that a local file's name begins like: timm's with any training tag."""

    def begins(row: Published) -> str:
        return _whole(row) if row.sha256_prefix else _plain(row.file.split(".")[0])

    def letters_alike(row: Published) -> int:
        return next(
            i for i, (one, other) in enumerate(zip(stem + "<", _plain(row.file) + ">", strict=False)) if one != other
        )

    stem = _plain(name)
    rows = [row for row in PUBLISHED if row.source == source and same_builder(row.net, net)]
    return max((row for row in rows if stem.startswith(begins(row))), key=letters_alike, default=None)


def _habit(net: str, source: str, name: str) -> Contract:
    """What files of a source usually come with: as the first that it published for this net, or for its kind.

    timm's files whose names begin with tf_ have TensorFlow's padding and epsilon.
    """
    by_tensorflow = source == "timm" and _plain(name).startswith("tf_")
    rows = [row for row in PUBLISHED if source in (row.source, "handlens") and same_builder(row.net, net)]
    rows.sort(key=lambda row: (by_tensorflow and row.arguments.get("padding") != "tensorflow", row.net != net))
    same = SAME if by_tensorflow else {}
    image_px = nets.entry(net).image_px
    if not rows:
        usual = Preprocess(interpolation="bicubic" if source == "timm" else "bilinear").at(image_px)
        return Contract(usual, dict(same), "ImageNet's usual")
    preprocess = rows[0].preprocess if rows[0].net == net else rows[0].preprocess.at(image_px)
    arguments = {key: value for key, value in rows[0].arguments.items() if key != "width"}
    return Contract(preprocess, arguments | same, f"those of {rows[0].file.rsplit('/', 1)[-1]}")
