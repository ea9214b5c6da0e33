"""Which mode of `handlens train` for few photos, beside a linear probe and timm's training:

    python benchmarks/few_photos.py PHOTOS --v2-weights FILE [--way full ...] [--per-class 5,10,20,50] [--seeds 0,1,2]

MobileNetV2, the recipe's own choices for each mode; "full:freeze_bn=true,augment=light" is mode full with these fields.
"probe" is scikit-learn's logistic regression on the frozen features; "timm" its training script's defaults
(benchmarks/peers/timm_few.py). A seed draws the training photos from the training split of seed 0, and an eighth as
many for validation from six a class of the validation split; all are judged on the rest of the validation split, as a
default is chosen by it, and never on the test split. What is in benchmarks/results/few_photos.json already is not
trained again. Prints the table and writes docs/images/few_photos.png; with `--way none` only that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from handlens import files
from handlens.experiments import learning_curve
from handlens.experiments.learning_curve import Embedded, draw
from handlens.experiments.result import panels
from handlens.nets import keys, weights
from handlens.train.judge import versions
from handlens.train.recipe import choose
from side_by_side import ROOT, own

RESULT = ROOT / "benchmarks" / "results" / "few_photos.json"
FIGURE = ROOT / "docs" / "images" / "few_photos.png"
NET = "mobilenet_v2"
WAYS = {"probe": "linear probe", "head": "mode head", "last": "mode last", "full": "mode full", "timm": "timm"}
RESERVED = 6  # validation photos a class that trainings may choose by: an eighth of 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--v2-weights", required=True, help="MobileNetV2's ImageNet weights")
    parser.add_argument("--way", action="append", help="probe, head, last, full or timm; may repeat. All.")
    parser.add_argument("--per-class", default="5,10,20,50")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    given = parser.parse_args()
    result = files.read_json(RESULT) if RESULT.is_file() else {"runs": []}
    done = {(run["way"], run["photos_per_class"], run["seed"]) for run in result["runs"]}
    ways = [way for way in given.way or WAYS if way != "none"]
    if ways:
        embedded = for_choosing(learning_curve.embed(given.photos, NET, given.v2_weights))
        result |= {
            "command": "python benchmarks/few_photos.py PHOTOS --v2-weights FILE", "network": NET,
            "weights": Path(given.v2_weights).name, "versions": versions(),
            "judged_on": f"{len(embedded.data.splits['test'])} photos of the validation split of seed 0",
        }  # fmt: skip
    for seed in map(int, given.seeds.split(",")):
        for size in map(int, given.per_class.split(",")):
            for way in ways:
                if (way, size, seed) in done:
                    continue
                since = time.monotonic()
                right, more = one(embedded, way, size, seed)
                run = {"way": way, "photos_per_class": size, "seed": seed, "top1": float(right.mean()), **more}
                run |= {"right": "".join("01"[int(hit)] for hit in right)}
                result["runs"].append(run)
                files.write_json(RESULT, result)
                print(f"{way} {size} {seed} {right.mean():.1%} {time.monotonic() - since:.0f} s", flush=True)
    result["summary"] = summary(result["runs"])
    files.write_json(RESULT, result)
    print("\n".join([*markdown(result["summary"]), "", *table(result["summary"])]))
    draw_figure(result["summary"])


def for_choosing(embedded: Embedded) -> Embedded:
    """The validation split cut in two: `RESERVED` a class for the trainings, the rest in place of the test split."""
    splits, vectors = embedded.data.splits, embedded.vectors
    few = draw(splits["validation"].labels, RESERVED, 0)
    rest = np.setdiff1d(np.arange(len(splits["validation"])), few)
    photos, seen = {"train": splits["train"]}, {"train": vectors["train"]}
    for name, indices in (("validation", few), ("test", rest)):
        photos[name], seen[name] = splits["validation"].select(indices), vectors["validation"][:, indices]
    return dataclasses.replace(embedded, data=dataclasses.replace(embedded.data, splits=photos), vectors=seen)


def one(embedded: Embedded, way: str, size: int, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Which photos (bool) are answered rightly, and facts of the training."""
    splits = embedded.data.splits
    chosen = draw(splits["train"].labels, size, seed)
    if way == "probe":
        vectors = embedded.vectors["train"][0, chosen], splits["train"].labels[chosen], embedded.vectors["test"][0]
        return learning_curve.probe(*vectors, splits["test"].labels), {}
    if way == "timm":
        return by_timm(embedded, chosen, seed)
    mode, _, fields = way.partition(":")
    more = {name: json.loads(value) for name, _, value in (f.partition("=") for f in fields.split(",") if f)}
    right, recipe = learning_curve.trained(embedded, size, seed, {"mode": mode, **more})
    return right, {"epochs": recipe.epochs}


def by_timm(embedded: Embedded, chosen: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """timm's defaults, with as many epochs and photos a batch as mode full has."""
    splits, begin = embedded.data.splits, embedded.given["weights"]
    counts = np.bincount(splits["train"].labels[chosen])
    recipe = choose(counts.tolist(), {"net": NET})
    file = weights.find(NET, begin)
    settings: dict[str, Any] = {
        "train": [str(splits["train"].path(index)) for index in chosen],
        "labels": splits["train"].labels[chosen].tolist(),
        "test": [str(splits["test"].path(index)) for index in range(len(splits["test"]))],
        "timm": "mobilenetv2_100", "arguments": {"pad_type": "same"}, "px": recipe.image_px,
        "mean": file.preprocess.mean, "std": file.preprocess.std, "num_classes": len(counts),
        "epochs": recipe.epochs, "batch_size": recipe.batch_size, "seed": seed,
    }  # fmt: skip
    ours = weights.load(file).state_dict()
    shapes = own("timm_keys.py", settings)["shapes"]
    state = {
        key: ours[name].reshape(shape).contiguous()
        for key, shape in shapes.items()
        if (name := keys.rename("timm", NET, key)) in ours and not key.startswith("classifier")
    }
    with tempfile.TemporaryDirectory() as folder:
        save_file(state, f"{folder}/timm.safetensors")
        found = own("timm_few.py", {**settings, "weights": f"{folder}/timm.safetensors"}, threads=1)
    return np.array(found["answers"]) == splits["test"].labels, {"epochs": recipe.epochs}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, by way and size; on equal seeds, what it is more than mode full."""
    found = []
    for way, size in dict.fromkeys((run["way"], run["photos_per_class"]) for run in runs):
        tops = {run["seed"]: run["top1"] for run in runs if (run["way"], run["photos_per_class"]) == (way, size)}
        full = {run["seed"]: run["top1"] for run in runs if (run["way"], run["photos_per_class"]) == ("full", size)}
        more = [top - full[seed] for seed, top in tops.items() if seed in full]
        found.append(
            {
                "way": way, "photos_per_class": size, "seeds": len(tops), "mean": float(np.mean(list(tops.values()))),
                "sd": float(np.std(list(tops.values()), ddof=1)) if len(tops) > 1 else None,
                "less_full": float(np.mean(more)) if more else None,
                "less_full_se": float(np.std(more, ddof=1) / len(more) ** 0.5) if len(more) > 1 else None,
            }
        )  # fmt: skip
    return sorted(found, key=lambda row: (row["photos_per_class"], row["way"]))


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """The table of docs/learning-curve.md: mean, standard deviation and draws, by size and way."""
    cells = {(row["photos_per_class"], row["way"]): row for row in rows}
    lines = [f"| photos a class | {' | '.join(WAYS.values())} |", f"|---|{'---|' * len(WAYS)}"]
    for size in sorted({row["photos_per_class"] for row in rows}):
        texts = []
        for way in WAYS:
            row = cells.get((size, way))
            spread = "" if not row or row["sd"] is None else f" ± {100 * row['sd']:.1f}"
            texts.append(f"{100 * row['mean']:.1f} %{spread} ({row['seeds']})" if row else "not measured")
        lines.append(f"| {size} | {' | '.join(texts)} |")
    return lines


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of text, a row each."""
    lines = []
    for row in rows:
        spread = "" if row["sd"] is None else f" ± {100 * row['sd']:.1f}"
        less = "" if row["less_full"] is None else f"{100 * row['less_full']:+.1f}"
        less += "" if row["less_full_se"] is None else f" ± {100 * row['less_full_se']:.1f}"
        lines.append(
            f"{row['photos_per_class']:3} {row['way']:40} {row['mean']:6.1%}{spread}, {row['seeds']} seeds; "
            f"less full: {less}"
        )
    return lines


def draw_figure(rows: list[dict[str, Any]]) -> None:
    figure, (axes,) = panels(1, width=6.2, height=4.2)
    sizes = sorted({row["photos_per_class"] for row in rows})
    for (way, label), marker in zip(WAYS.items(), "sovD^", strict=True):
        own_rows = [row for row in rows if row["way"] == way]
        if own_rows:
            axes.errorbar(
                [row["photos_per_class"] for row in own_rows],
                [100 * row["mean"] for row in own_rows],
                [100 * (row["sd"] or 0) for row in own_rows],
                marker=marker, markersize=5, capsize=3, label=label,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("training photos a class")
    axes.set_ylabel("top-1 on photos that were not trained on, %")
    axes.set_title(f"{NET}, five flowers: mean and standard deviation over the seeds", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    with files.atomic(FIGURE) as file:
        figure.savefig(file, format="png", dpi=110)


if __name__ == "__main__":
    main()
