"""How accuracy grows with the number of photos, by mode of training, beside a linear probe."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from handlens import files, nets
from handlens import photos as photos_room
from handlens.errors import HandlensError, counted, missing_extra
from handlens.experiments.result import Result, panels
from handlens.run.torch_runtime import default_device
from handlens.train import last, learned, loop, start, trial
from handlens.train.data import Data, data_of
from handlens.train.features import Frozen, weights_hash
from handlens.train.head import fit_head
from handlens.train.pixels import Fixed, Pixels
from handlens.train.recipe import Recipe, choose

SIZES = (5, 10, 20, 50)  # training photos a class
_DRAWS = 2000  # of the bootstrap
_FEWEST_SEEDS = 3  # whose spread says something of the luck of the draw
_FEWEST_MISTAKES = 5  # on the test photos: draws from fewer hardly differ, whatever the truth is
_FITTED = 3  # sizes, from the greatest down, that the forecast follows


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Photos as a frozen network sees them.

    vectors: float32 (1 + views, N, F) by split, the plain view first. given: fields of the recipe.
    """

    begun: start.Start
    data: Data
    given: dict[str, Any]
    vectors: dict[str, np.ndarray]


def embed(
    photos: str,
    net: str = Recipe.net,
    weights: str = "imagenet",
    split_seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    kept_in: Path | None = None,
) -> Embedded:
    """Split photos as `handlens train` does and compute their features, or read them from the cache.

    photos: a folder, a CSV or a published set's name. `progress` is called with (done, total) images of the training
    photos, then of the others. kept_in: the file that `measure` will go on with. Raises HandlensError for photos or
    weights that do not fit, without test photos, and where that file is of others, before features are computed.
    """
    given = {"net": net, "weights": weights, "mode": "head", "photos": photos}
    recipe = choose([100, 100], {**given, "seed": split_seed})
    data = data_of(recipe, None)
    if not len(data.splits["test"]):
        raise HandlensError(f"{photos} has too few photos for a test split", "add photos: ten a class at least")
    learned.check_unlearned(recipe, photos_room.scan(photos), "a curve of what more photos bring")
    begun = start.start_of(recipe, data.classes)
    embedded = Embedded(begun, data, given, {})
    _Answers(kept_in, embedded)
    for name, views in (("train", recipe.head_views), ("validation", 0), ("test", 0)):
        if len(data.splits[name]):
            frozen = Frozen(begun.net, begun.preprocess, min_area=recipe.crop_min_area, flip=recipe.flip)
            embedded.vectors[name] = frozen.features(data.splits[name], data.sha256, views, progress)
    return embedded


def measure(
    embedded: Embedded,
    sizes: Sequence[int] = SIZES,
    seeds: int = 5,
    progress: Callable[[int, int], None] | None = None,
    modes: Sequence[str] = ("head",),
    kept_in: Path | None = None,
) -> Result:
    """Train on `sizes` photos a class and on all, `seeds` times each, and judge on the same test photos.

    modes: of `handlens train`; beside them stands a linear probe. A seed draws the photos (those of a smaller size are
    among those of a greater one) and the first weights. With n training photos a class go n / 8 validation photos, as
    in the usual split; a class that has fewer gives all it has. Intervals are by bootstrap over seeds and test photos.
    kept_in: a JSON file, written after each training: {"of": a hash of photos, split and network, "right": {"mode size
    seed": "1" or "0" for each test photo}}; trainings in it are not repeated.
    """
    splits = embedded.data.splits
    labels = {name: splits[name].labels for name in embedded.vectors}
    usual = int(np.median(splits["train"].counts()))
    kept: list[int | None] = [*sorted({size for size in sizes if size < usual}), None]
    answers = _Answers(kept_in, embedded)
    right: dict[str, list[np.ndarray]] = {name: [] for name in (*modes, "probe")}  # per size, bool (seeds, test photos)
    used, done = [], 0
    for size in kept:
        rows: dict[str, list[np.ndarray]] = {name: [] for name in right}
        for seed in range(seeds):
            chosen = draw(labels["train"], size, seed)
            for mode in modes:
                make = functools.partial(trained, embedded, size, seed, {"mode": mode})
                rows[mode].append(answers.get(f"{mode} {size or 'all'} {seed}", make))
                done += 1
                if progress:
                    progress(done, len(kept) * seeds * len(modes))
            known, unknown = embedded.vectors["train"][0, chosen], embedded.vectors["test"][0]
            rows["probe"].append(probe(known, labels["train"][chosen], unknown, labels["test"]))
        used.append(len(chosen) / len(splits["train"].classes))
        for name in right:
            right[name].append(np.stack(rows[name]))
    result = _result(embedded, np.array(used), {name: np.stack(found) for name, found in right.items()})
    result.numbers["sizes_left_out"] = sorted(set(sizes) - {*kept, round(used[-1])})
    return result


class _Answers:
    """Which test photos each training was right about, in a file if one is named, so that it can be gone on with."""

    def __init__(self, path: Path | None, embedded: Embedded) -> None:
        given, weights, contract = embedded.given, weights_hash(embedded.begun.net), embedded.begun.preprocess.to_dict()
        # Photos and weights count by their content, wherever they lie; earlier versions counted how they were named.
        told = {name: value for name, value in given.items() if name not in ("photos", "weights")}
        self.path, self.of = path, _hash(embedded.data, [told, contract, weights])
        nothing: dict[str, Any] = {"of": self.of, "right": {}}
        stored = files.read_json(path) if path and path.is_file() else nothing
        if stored.get("of") not in (self.of, _hash(embedded.data, [given, weights])):
            raise HandlensError(
                f"{path} is of other photos or labels, another split or another network",
                "choose another --out, or remove it",
            )
        self.known: dict[str, str] = stored["right"]

    def get(self, name: str, make: Callable[[], tuple[np.ndarray, Recipe]]) -> np.ndarray:
        """bool (M,): the stored answers of a training, or those of `make`, which are stored."""
        if name not in self.known:
            self.known[name] = "".join("01"[int(hit)] for hit in make()[0])
            if self.path:
                files.write_json(self.path, {"of": self.of, "right": self.known})
        return np.array([hit == "1" for hit in self.known[name]])


def _hash(data: Data, facts: list[Any]) -> str:
    """SHA-256 of facts and of the photos' paths, contents, labels and splits."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for part in data.splits.values():
        of_photos = zip(part.paths, map(data.sha256.get, part.paths), part.labels.tolist(), strict=True)
        digest.update(json.dumps([sorted(of_photos), part.classes]).encode())
    return digest.hexdigest()


def draw(labels: np.ndarray, size: int | None, seed: int) -> np.ndarray:
    """The first `size` of each class in an order that the seed decides; all for None."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if size is None:
        return np.sort(order)
    return np.sort(np.concatenate([order[labels[order] == name][:size] for name in np.unique(labels)]))


def trained(embedded: Embedded, size: int | None, seed: int, given: Mapping[str, Any]) -> tuple[np.ndarray, Recipe]:
    """Which test photos (bool) a network is right about that `handlens train` would have made of few photos.

    size: training photos a class that `seed` draws, None for all. given: fields of the recipe, such as the mode; the
    rest is chosen by the number of photos and returned, too.
    """
    splits = embedded.data.splits
    chosen = draw(splits["train"].labels, size, seed)
    name = "validation" if len(splits["validation"]) else "train"
    judged = draw(splits[name].labels, None if size is None else max(1, round(size / 8)), seed)
    counts = np.bincount(splits["train"].labels[chosen], minlength=len(embedded.data.classes))
    recipe = choose(counts.tolist(), {**embedded.given, "seed": seed, **given})
    fit = _head if recipe.mode == "head" else _tuned
    return fit(embedded, chosen, name, judged, recipe) == splits["test"].labels, recipe


def _head(embedded: Embedded, chosen: np.ndarray, name: str, judged: np.ndarray, recipe: Recipe) -> np.ndarray:
    """The answers (int64) of a head on the features that are there."""
    vectors, splits = embedded.vectors, embedded.data.splits
    frozen = len(embedded.begun.net.classifier) - 1
    torch.manual_seed(recipe.seed)
    net = nets.replace_head(copy.deepcopy(embedded.begun.net), len(embedded.data.classes), hidden=recipe.head_hidden)
    with_head, _ = fit_head(
        net,
        frozen,
        (vectors["train"][:, chosen], splits["train"].labels[chosen]),
        (vectors[name][:, judged], splits[name].labels[judged]),
        recipe,
    )
    with torch.inference_mode():
        logits = nn.Sequential(*list(with_head.classifier)[frozen:])(torch.from_numpy(vectors["test"][0]))
    answers: np.ndarray = logits.argmax(1).numpy()
    return answers


def _tuned(embedded: Embedded, chosen: np.ndarray, name: str, judged: np.ndarray, recipe: Recipe) -> np.ndarray:
    """The answers (int64) of a network that is trained anew, in whole or from some block on."""
    splits = embedded.data.splits
    begun = start.start_of(recipe, embedded.data.classes)
    accelerator = "cpu" if default_device().type == "cpu" else "auto"
    fabric = Fabric(accelerator=accelerator, devices=1, precision=trial.usual_precision("auto"))
    few, validation = splits["train"].select(chosen), splits[name].select(judged)
    cut, _ = last.cut_for(begun.net, recipe, few, validation)
    sha256 = embedded.data.sha256
    maps = cut and last.maps_of(cut, recipe, begun.preprocess, few, validation, sha256, fabric.device)
    with (
        contextlib.closing(Pixels(few, begun.preprocess, recipe.cache_mb)) as pixels,
        tempfile.TemporaryDirectory() as folder,
    ):
        if cut and maps:
            net, _ = last.fit(cut, maps, recipe, begun.preprocess, Path(folder), fabric)
        else:
            fixed = Fixed(validation, begun.preprocess, recipe.cache_mb)
            net = loop.prepare(begun.net, recipe)
            net, _ = loop.fit(net, pixels, fixed, recipe, begun.preprocess, Path(folder), fabric)
        net = net.to(fabric.device)
        make = loop.Batches(pixels, recipe, begun.preprocess, fabric.device)
        answers = []
        with torch.inference_mode(), fabric.autocast():
            for images, _ in Fixed(splits["test"], begun.preprocess, cache_mb=0):
                answers.append(net(make.plain(images)).argmax(1).cpu().numpy())
    return np.concatenate(answers)


def probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> np.ndarray:
    """Which test photos (bool) scikit-learn's logistic regression, as it comes, is right about."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise missing_extra("evaluate", "scikit-learn") from None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that stops early is good enough for a yardstick
        right: np.ndarray = model.fit(train, labels).predict(test) == test_labels
    return right


def _result(embedded: Embedded, used: np.ndarray, right: dict[str, np.ndarray]) -> Result:
    """used: (S,) photos a class. right: bool (S, seeds, M) by mode, and of the probe."""
    splits = embedded.data.splits
    modes = [name for name in right if name != "probe"]
    _, seeds, num_test = right["probe"].shape
    drawn = {name: _bootstrap(found) for name, found in right.items()}  # (draws, S), the same test photos in all
    rows = []
    for index, size in enumerate(used):
        row: dict[str, Any] = {"photos_per_class": round(float(size), 1)}
        for name, found in right.items():
            each = found[index].mean(1)
            row[f"{name}_top1"] = float(each.mean())
            row[f"{name}_sd"] = float(each.std(ddof=1)) if seeds > 1 else None
            row[f"{name}_ci95"] = _ends(drawn[name][:, index])
        for mode in modes:
            row[f"{mode}_less_probe"] = row[f"{mode}_top1"] - row["probe_top1"]
            row[f"{mode}_less_probe_ci95"] = _ends(drawn[mode][:, index] - drawn["probe"][:, index])
        rows.append(row)
    forecasts = {mode: _forecast(used, right[mode].mean((1, 2)), drawn[mode], num_test) for mode in modes}
    numbers: dict[str, Any] = {
        "forecasts": forecasts,
        "top1": {name: found.mean(2).tolist() for name, found in right.items()},
    }
    data = {
        "photos": embedded.given["photos"],
        "net": embedded.given["net"],
        "weights": embedded.given["weights"],
        "modes": modes,
        "seeds": seeds,
        "split": {name: len(part) for name, part in splits.items()},
        "classes": list(embedded.data.classes),
        "intervals": "bootstrap over seeds and test photos",
    }
    return Result(
        finding=_words(rows, forecasts, num_test, seeds),
        tables={"learning curve": rows},
        numbers=numbers,
        data=data,
        figure=_figure(rows, forecasts, embedded.given["net"]),
    )


def _bootstrap(right: np.ndarray) -> np.ndarray:
    """Mean accuracies (draws, S) with seeds and test photos drawn again; equal draws for inputs of equal shape."""
    random = np.random.default_rng(0)
    sizes, seeds, photos = right.shape
    found = np.empty((_DRAWS, sizes))
    for draw in range(_DRAWS):
        weights = np.bincount(random.integers(photos, size=photos), minlength=photos)
        means = right @ weights / photos  # (S, seeds)
        found[draw] = np.take_along_axis(means, random.integers(seeds, size=(sizes, seeds)), axis=1).mean(1)
    return found


def _ends(values: np.ndarray) -> list[float]:
    return [float(end) for end in np.quantile(values, (0.025, 0.975))]


def _forecast(used: np.ndarray, top1: np.ndarray, drawn: np.ndarray, num_test: int) -> dict[str, Any] | None:
    """What twice the photos would bring, by error = a * n^-b through the greatest sizes; None for a single size."""
    x = np.log(used[-_FITTED:])
    if len(x) < 2 or np.ptp(x) == 0:
        return None
    least = 0.5 / num_test  # half a mistake stands for none

    def power(accuracies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(..., S) -> b and the gain at twice the photos."""
        y = np.log(np.maximum(1 - accuracies[..., -len(x) :], least))
        slope = ((x - x.mean()) * (y - y.mean(-1, keepdims=True))).sum(-1) / ((x - x.mean()) ** 2).sum()
        last = np.exp(y.mean(-1) + slope * (x[-1] - x.mean()))
        return -slope, last * (1 - 2.0**slope)

    b, gain = power(top1)
    bs, gains = power(drawn)
    y = np.log(np.maximum(1 - top1[-len(x) :], least))
    return {
        "photos_per_class": round(2 * float(used[-1])),
        "gain": float(gain),
        "gain_ci95": _ends(gains),
        "exponent": float(b),
        "exponent_ci95": _ends(bs),
        "factor": float(np.exp(y.mean() + b * x.mean())),
        "sizes": len(x),
    }


def _words(
    rows: list[dict[str, Any]], forecasts: Mapping[str, dict[str, Any] | None], num_test: int, num_seeds: int
) -> str:
    """A word on each mode: to choose one by the test photos and tell its figure alone would flatter."""
    said, last = [], rows[-1]
    for mode, forecast in forecasts.items():
        low, high = last[f"{mode}_ci95"]
        said.append(
            f"With all {counted(round(last['photos_per_class']), 'training photo')} a class mode {mode} is right about "
            f"{last[f'{mode}_top1']:.1%} of {counted(num_test, 'test photo')} ({low:.1%} to {high:.1%})."
        )
        if forecast:
            low, high = (100 * end for end in forecast["gain_ci95"])
            said.append(
                f"Twice as many (some {forecast['photos_per_class']}) would bring about {100 * forecast['gain']:+z.1f} "
                f"points (95 % interval {low:+z.1f} to {high:+z.1f}), if its mistakes go on as through the last "
                f"{forecast['sizes']} sizes."
            )
            if low <= 0 <= high:
                said.append("That cannot be told from nothing: more test photos would tell.")
        mistakes = math.ceil((1 - last[f"{mode}_top1"]) * num_test - 1e-9)  # a mean of several draws
        if mistakes < _FEWEST_MISTAKES:
            said.append(
                f"By {counted(mistakes, 'mistake')} on {counted(num_test, 'test photo')} all of this is a guess, and "
                "the intervals are too narrow: more test photos would tell."
            )
    if num_seeds < _FEWEST_SEEDS:
        drawn = counted(num_seeds, "draw")
        said.append(
            f"With {drawn} of training photos the intervals hold little of the luck of the draw, and no mode is "
            f"compared: --seeds {_FEWEST_SEEDS} or more would tell."
        )
        return " ".join(said)
    for mode in forecasts:
        ends = f"{mode}_less_probe_ci95"
        sides = {"better": [r for r in rows if r[ends][0] > 0], "worse": [r for r in rows if r[ends][1] < 0]}
        for word, found in sides.items():
            if found:
                gaps = [f"{r['photos_per_class']:.0f} ({100 * r[f'{mode}_less_probe']:+z.1f} points)" for r in found]
                said.append(f"Mode {mode} is {word} than a linear probe at {', '.join(gaps)} a class.")
        if not any(sides.values()):
            said.append(f"At no size can mode {mode} be told from a linear probe.")
    return " ".join(said)


def _figure(rows: list[dict[str, Any]], forecasts: Mapping[str, dict[str, Any] | None], net: str) -> Any:
    figure, (axes,) = panels(1, width=6.2, height=4.2)
    x = np.array([row["photos_per_class"] for row in rows])
    lines = [(mode, f"handlens, mode {mode}", marker) for mode, marker in zip(forecasts, "ovD^", strict=False)]
    for name, label, marker in (*lines, ("probe", "linear probe", "s")):
        y = np.array([row[f"{name}_top1"] for row in rows])
        spread = np.array([row[f"{name}_sd"] or 0.0 for row in rows])
        axes.errorbar(x, 100 * y, 100 * spread, marker=marker, markersize=5, capsize=3, label=label)
    for number, forecast in enumerate(filter(None, forecasts.values())):
        ahead = np.geomspace(x[-forecast["sizes"]], forecast["photos_per_class"], 30)
        errors = forecast["factor"] * ahead ** -forecast["exponent"]
        label = "" if number else "power law, to twice the photos"
        axes.plot(ahead, 100 * (1 - errors), "--", color="grey", label=label)
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{size:.0f}" for size in x])
    axes.minorticks_off()
    axes.set_xlabel("training photos a class")
    axes.set_ylabel("top-1 on the test photos, %")
    axes.set_title(f"{net}: mean and standard deviation over the seeds", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure
