"""What is found besides accuracy, as parts of the report and as tables on the screen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from handlens.errors import counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report: a heading, a sentence or two, and a table."""

    heading: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


def unknown(found: dict[str, Any]) -> Section:
    """What `unknown.judge` found."""
    rows = [
        (
            f"of {counted(found['num_photos'], 'photo')} of the classes are taken as such",
            _share(found["true_accept"], found["true_accept_ci95"]),
        )
    ]
    if "num_outside" in found:
        of = f"of {counted(found['num_outside'], 'photo')} of other things"
        rows += [
            (f"{of} are taken for one of the classes", _share(found["false_accept"], found["false_accept_ci95"])),
            (f"{of} would be, where 95 % of the others are taken as such", f"{found['false_accept_at_95']:.1%}"),
            ("AUROC: 100 % tells all of them apart, 50 % is chance", f"{found['auroc']:.1%}"),
        ]
    return Section(
        heading="None of the classes",
        text=f"A photo whose score ({found['kind']}) is below {found['threshold']:.4g} "
        + ("is called unknown" if found.get("calls", True) else "would be called unknown")
        + (f": {found['caution']}." if found.get("caution") else "."),
        header=("photos", "share"),
        rows=rows,
    )


def notes(said: Sequence[str]) -> Section:
    """What a training said of its photos and of what they were too few for."""
    return Section(
        heading="Notes of the training", text="", header=("what was noticed",), rows=[(line,) for line in said]
    )


def not_measured() -> Section:
    """What takes too long to be looked at in every training, and how it can be had."""
    return Section(
        heading="On a phone's photos",
        text="What blur, noise and bad light would cost, and each resize rule on phones' shapes, was not measured in "
        "the training, as it takes long. RUN is the folder of this report:",
        header=("command",),
        rows=[("handlens evaluate RUN --robustness --report robustness.html",)],
    )


def coverage(found: dict[str, Any]) -> Section:
    """What `conformal.judge` found."""
    sizes = [
        ("empty sets: no class reaches it" if size == "0" else f"sets of {size}", str(number))
        for size, number in found["sizes"].items()
    ]
    return Section(
        heading="Sets of classes",
        text=f"Every class with a probability of at least {found['threshold']:.4g} is in a photo's set. Promised to "
        f"hold the right one: {found['promised']:.1%}, by "
        f"{counted(found['num_validation'], 'validation photo')}.",
        header=("figure", "value"),
        rows=[
            ("sets that hold the right class", _share(found["coverage"], found["coverage_ci95"])),
            ("classes in a set, on average", f"{found['mean_size']:.2f}"),
            *sizes,
        ],
    )


def robustness(found: dict[str, Any]) -> list[Section]:
    """What `robustness.measure` found: what harms photos, and the shapes of photos by resize rule."""
    rules = list(next(iter(found["shapes"].values())))
    return [
        Section(
            heading="What a phone does to photos",
            text="The same photos, harmed before the pixel contract sees them.",
            header=("photos", "top-1", "95 % interval"),
            rows=[
                (name, f"{line['top1']:.1%}", "{:.1%} to {:.1%}".format(*line["top1_ci95"]))
                for name, line in found["harmed"].items()
            ],
        ),
        Section(
            heading="Shapes of photos",
            text="The middle of each photo cut to a phone's shapes, and brought to the network's square by each rule. "
            f"In use is {found['resize']}; the network was trained with that one.",
            header=("shape", *(f"{rule} (in use)" if rule == found["resize"] else rule for rule in rules)),
            rows=[
                (shape, *(_share(line[rule]["top1"], line[rule]["top1_ci95"]) for rule in rules))
                for shape, line in found["shapes"].items()
            ],
        ),
    ]


def _share(share: float, ends: Sequence[float]) -> str:
    return f"{share:.1%} ({ends[0]:.1%} to {ends[1]:.1%})"
