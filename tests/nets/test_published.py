"""The table of published files against what torchvision and timm say of them."""

from __future__ import annotations

import ast
import csv
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from handlens import nets
from handlens.nets import keys, weights
from handlens.nets.published import GOOGLENET, PUBLISHED, Published

TORCHVISION = [row for row in PUBLISHED if row.source == "torchvision"]
TIMM = [row for row in PUBLISHED if row.source == "timm"]
INVERTED = ("googlenet_torchvision", "inception_v3")  # torchvision's own networks undo ImageNet's mean and std
RESULTS = {  # top-1 of those that are not in timm.csv, by results/results-imagenet.csv of timm's repository
    "tf_efficientnet_lite1.in1k": 76.674, "tf_efficientnet_lite2.in1k": 77.470, "tf_efficientnet_lite3.in1k": 79.808,
    "tf_efficientnet_lite4.in1k": 81.540, "vit_small_patch32_224.augreg_in21k_ft_in1k": 76.010,
}  # fmt: skip
VIT_SIZES = {"ti": "tiny", "s": "small", "b": "base", "l": "large"}
SMALL = [row for row in PUBLISHED if row.net.startswith("mobilenet") and row.source in ("torchvision", "timm")]
LARGE = [row for row in PUBLISHED if row not in SMALL and row.source in ("torchvision", "timm")]


def table(path: Path, key: str) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def numbers(text: str) -> tuple[float, ...]:
    found = ast.literal_eval(text)
    return tuple(found) if isinstance(found, (list, tuple)) else (found,)


def their_name(row: Published) -> str:
    """What the publisher calls the network."""
    if row.source == "torchvision":
        return row.net.removesuffix("_torchvision")
    return "legacy_xception" if row.net == "xception" else row.file.split(".")[0]


def test_every_row_is_of_the_registry_and_unlike_the_others() -> None:
    assert all(row.net in nets.NETS for row in PUBLISHED)
    assert len({(row.source, row.file) for row in PUBLISHED}) == len(PUBLISHED)


def test_torchvisions_rows(shared: Path) -> None:
    known = table(shared / "reference" / "torchvision.csv", "url_basename")
    for row in TORCHVISION:
        line = known[row.file]
        assert line["model"] == their_name(row)
        assert line["url"] == weights._PYTORCH_URL + row.file
        assert row.sha256_prefix.startswith(line["hash8"]) and len(row.sha256_prefix) >= 8
        assert row.top1 == pytest.approx(float(line["acc@1"]), abs=0.0005)
        assert (row.preprocess.image_px,) == numbers(line["crop_size"])
        assert (row.preprocess.resize_px,) == numbers(line["resize_size"])
        assert row.preprocess.interpolation == line["interpolation"]
        if row.net not in INVERTED:
            assert row.preprocess.mean == numbers(line["mean"]) and row.preprocess.std == numbers(line["std"])
    left_out = [
        line["url_basename"]
        for name in nets.NETS
        for line in known.values()
        if line["model"] == name.removesuffix("_torchvision")
        and line["url_basename"] not in {r.file for r in TORCHVISION}
    ]
    assert all("swag" in name or name.startswith("vgg16_features") for name in left_out), left_out


def test_timms_rows(shared: Path) -> None:
    with (shared / "reference" / "timm.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for row in TIMM:
        px = row.preprocess.image_px
        cfg = timm.models.get_pretrained_cfg("legacy_xception" if row.net == "xception" else row.file)
        assert row.file in (f"{cfg.architecture}.{cfg.tag}", cfg.url)
        assert cfg.input_size == (3, px, px) and cfg.num_classes == 1000
        assert row.preprocess.resize_px == int(px / cfg.crop_pct)
        assert row.preprocess.interpolation == cfg.interpolation
        assert (row.preprocess.mean, row.preprocess.std) == (cfg.mean, cfg.std)
        assert "nc" not in (cfg.license or "")
        top1 = [
            float(line["published_top1"])
            for line in lines
            if row.file in (line["hf_hub_id"].removeprefix("timm/"), line["url_in_cfg"])
            and line["published_img_size"] == str(px)
        ] or [RESULTS[row.file]]
        assert row.top1 == pytest.approx(*top1, abs=0.0005)


def test_no_mobilenet_of_timms_in_our_shapes_is_left_out(shared: Path) -> None:
    known = table(shared / "reference" / "timm.csv", "hf_hub_id")
    ids = [name.removeprefix("timm/") for name in known if re.match(r"timm/(tf_)?mobilenetv[123]", name)]
    left_out = set(ids) - {row.file for row in TIMM}
    assert {name.split(".")[0] for name in left_out} == {
        "mobilenetv1_100h", "mobilenetv2_110d", "mobilenetv2_120d", "mobilenetv3_large_150d", "mobilenetv3_rw",
        "mobilenetv3_large_100",  # its ImageNet-21k file of 11,221 classes
    }  # fmt: skip


def timms_names(net: str) -> list[str]:
    """What timm calls a network of ours, by its rules of naming, whether it has one or not."""
    if mobile := re.fullmatch(r"mobilenet_(v\d)(_small|_large)?(_minimalistic)?(?:_(\d{3}))?", net):
        version, size, minimal, width = mobile.groups("")
        name = f"mobilenet{version}{size}{minimal and '_minimal'}_{width or '100'}"
        return [name, f"tf_{name}"]
    if transformer := re.fullmatch(r"vit_(ti|s|b|l)_(16|32)", net):
        size, patch = transformer.groups()
        return [f"vit_{VIT_SIZES[size]}_patch{patch}_{px}" for px in (224, 384)]
    return [net, f"tf_{net}", f"legacy_{net}", net.removesuffix("_224") + "_384"]


@pytest.mark.parametrize("net", nets.NETS)
def test_no_net_goes_without_a_file_that_timm_has(net: str) -> None:
    """Its first for ImageNet: of a net that has one, further trainings are left out."""
    known = {name for name in timms_names(net) if timm.models.is_model(name)}
    configs = [timm.models.get_pretrained_cfg(name) for name in timm.list_pretrained() if name.split(".")[0] in known]
    theirs = [cfg for cfg in configs if cfg.num_classes == 1000 and "nc" not in (cfg.license or "")]
    assert weights.published(net) or not theirs, [f"{cfg.architecture}.{cfg.tag}" for cfg in theirs]
    lite = net.startswith("efficientnet_lite")
    here = {row.file for row in TIMM}
    assert not lite or {f"{cfg.architecture}.{cfg.tag}" for cfg in theirs} <= here


def test_timms_naming_is_understood() -> None:
    """All but Xception's own variant and the few whose published file is a relative's are found by it."""
    of_timm = {their_name(row) for row in TIMM}
    assert of_timm <= {name for net in nets.NETS for name in timms_names(net)} | {"mobilenetv1_125"}


def reference(row: Published) -> nn.Module:
    with torch.device("meta"):
        if row.source == "timm":
            return timm.create_model(their_name(row))
        # the files have the auxiliary classifiers
        extra: dict[str, Any] = {"init_weights": False, "aux_logits": True} if row.net in INVERTED else {}
        return torchvision.models.get_model(their_name(row), weights=None, **extra)


def fits(row: Published) -> None:
    """The publisher's network, renamed, is ours: tensors, epsilon and padding."""
    theirs = reference(row)
    ours = nets.on_meta(row.net, **row.arguments, **({"aux": True} if row.net in INVERTED else {}))
    renamed = {keys.rename(row.source, row.net, key): tuple(value.shape) for key, value in theirs.state_dict().items()}
    own = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    assert weights._differences(own, renamed, backbone_only=False) == []
    assert epsilons(ours) == epsilons(theirs)
    same = any(type(module).__name__ == "Conv2dSame" for module in theirs.modules())
    assert (row.arguments.get("padding") == "tensorflow") == same


def epsilons(net: nn.Module) -> set[tuple[str, float]]:
    kinds = (nn.BatchNorm2d, nn.LayerNorm)
    return {(kind.__name__, m.eps) for kind in kinds for m in net.modules() if isinstance(m, kind)}


@pytest.mark.parametrize("row", SMALL, ids=lambda row: row.file)
def test_mobilenets_fit(row: Published) -> None:
    fits(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", LARGE, ids=lambda row: row.file.rsplit("/", 1)[-1])
def test_the_others_fit(row: Published) -> None:
    fits(row)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_transform_input_is_a_contract_of_half(name: str) -> None:
    """ImageNet's normalisation and torchvision's `transform_input` together are (pixel - 0.5) / 0.5."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, init_weights=False, transform_input=True)
    pixels = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = model._transform_input((pixels - mean) / std)
    half_mean, half_std = (torch.tensor(value).view(3, 1, 1) for value in (GOOGLENET.mean, GOOGLENET.std))
    assert torch.allclose((pixels - half_mean) / half_std, expected, atol=1e-6)
