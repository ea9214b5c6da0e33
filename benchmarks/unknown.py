"""How well photos of none of the classes are told from the others, by which score:

    python benchmarks/unknown.py --photos FLOWERS --v2-weights FILE

Each of the five flower classes is left out in turn; a head (mode "head" of `handlens train`, its defaults) is trained
on the other four, on features of a pretrained network; the four classes' test photos and all photos of the fifth are
scored. Textures, noise, drawings and blank frames are reported apart. MobileNetV2 is what the default score was chosen
on, EfficientNet-Lite0 what the figures are quoted of. Writes benchmarks/results/unknown.json.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from handlens import files, nets
from handlens import photos as photos_room
from handlens.evaluate import calibration, unknown
from handlens.photos import Photos
from handlens.photos.drawn import CLASSES as DRAWN
from handlens.photos.drawn import picture
from handlens.train import familiar, start
from handlens.train.data import data_of
from handlens.train.familiar import CENTRES_A_CLASS
from handlens.train.features import Frozen
from handlens.train.head import fit_head
from handlens.train.judge import versions
from handlens.train.recipe import choose

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "unknown.json"
EACH = 200  # pictures of each kind that shows nothing
NEIGHBOURS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True, help="flower_photos")
    parser.add_argument("--v2-weights", required=True, help="MobileNetV2's weights")
    given = parser.parse_args()
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/unknown.py --photos FLOWERS --v2-weights FILE",
        "chosen_on": "mobilenet_v2",
        "versions": versions(),
        "nets": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        others = pictures_of_nothing(Path(folder))
        for net, weights in (("mobilenet_v2", given.v2_weights), ("efficientnet_lite0", "imagenet")):
            results["nets"][net] = one_net(net, weights, given.photos, others)
            files.write_json(RESULTS, results)


def one_net(net: str, weights: str, source: str, others: dict[str, Photos]) -> dict[str, Any]:
    """Five heads on the features of one network, and the means of their figures."""
    recipe = choose([500] * 4, {"net": net, "weights": weights, "mode": "head", "photos": source})
    data = data_of(recipe, None)
    begun = start.start_of(recipe, data.classes)

    def embed(photos: Photos, sha256: dict[str, str], views: int) -> np.ndarray:
        frozen = Frozen(begun.net, begun.preprocess, min_area=recipe.crop_min_area, flip=recipe.flip)
        return frozen.features(photos, sha256, views)

    vectors = {
        name: embed(part, data.sha256, recipe.head_views if name == "train" else 0)
        for name, part in data.splits.items()
    }
    plain = embed(data.splits["train"], data.sha256, 0)[0]
    outside = {kind: embed(part, photos_room.examine(part).sha256, 0)[0] for kind, part in others.items()}
    runs = []
    for left_out in range(len(data.classes)):
        known = {name: np.flatnonzero(part.labels != left_out) for name, part in data.splits.items()}
        labels = {
            name: np.where(part.labels > left_out, part.labels - 1, part.labels)[known[name]]
            for name, part in data.splits.items()
        }
        torch.manual_seed(recipe.seed)
        hidden = start.start_of(recipe, data.classes[:-1])
        small = nets.replace_head(hidden.net, 4, hidden=recipe.head_hidden)
        frozen = len(begun.net.classifier) - 1
        trained, _ = fit_head(
            small,
            frozen,
            (vectors["train"][:, known["train"]], labels["train"]),
            (vectors["validation"][:, known["validation"]], labels["validation"]),
            recipe,
        )
        head = torch.nn.Sequential(*list(trained.classifier)[frozen:]).eval()

        def logits_of(rows: np.ndarray, head: torch.nn.Module = head) -> np.ndarray:
            with torch.inference_mode():
                return head(torch.from_numpy(np.ascontiguousarray(rows))).numpy()

        unseen = np.concatenate([vectors[n][0][data.splits[n].labels == left_out] for n in data.splits])
        groups = {
            "validation": vectors["validation"][0][known["validation"]],
            "test": vectors["test"][0][known["test"]],
            "left out": unseen,
            **outside,
        }
        logits = {name: logits_of(rows) for name, rows in groups.items()}
        found = calibration.fit(logits["validation"], labels["validation"])
        scores = {
            kind: {
                name: unknown.Rejection(kind=kind, threshold=0.0).scores(
                    calibration.softmax(values, found.temperature), values
                )
                for name, values in logits.items()
            }
            for kind in unknown.KINDS
        }
        of_train = plain[known["train"]]
        scores["Mahalanobis distance of features"] = mahalanobis(of_train, labels["train"], groups)
        scores[f"distance of features to the {NEIGHBOURS}th nearest"] = nearest(of_train, groups)
        scores["energy + that distance, each standardised"] = summed(
            scores["energy"], scores[f"distance of features to the {NEIGHBOURS}th nearest"]
        )
        near = f"cosine of features with the nearest of {CENTRES_A_CLASS} k-means centres a class"
        scores[near] = centres(of_train, labels["train"], groups)
        known_as = familiar.fit(frozen, of_train, labels["train"], groups["validation"], logits["validation"])
        assert known_as is not None
        scores["shipped: energy, lowered by that cosine"] = {
            name: energy_of(known_as.lowered(torch.from_numpy(rows), torch.from_numpy(logits[name]), known_as.centres))
            for name, rows in groups.items()
        }
        row: dict[str, Any] = {
            "left_out": data.classes[left_out],
            "top1_of_the_others": float((logits["test"].argmax(1) == labels["test"]).mean()),
            "temperature": found.temperature,
            "scores": {},
        }
        for kind, own in scores.items():
            threshold = unknown.threshold_of(own["validation"])
            row["scores"][kind] = {
                name: unknown.separation(own["test"], own[name], threshold)
                for name in own
                if name not in ("validation", "test")
            }
        runs.append(row)
        print(net, row["left_out"], {k: round(v["left out"]["auroc"], 3) for k, v in row["scores"].items()}, flush=True)
    return {"runs": runs, "mean": means(runs), "num_test": len(data.splits["test"]), "recipe": vars(recipe) | {
        "photos": Path(recipe.photos).name, "weights": Path(recipe.weights).name}}  # fmt: skip


def means(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over the five runs of each figure, by score and by kind of picture; never pooled."""
    return {
        kind: {
            name: {
                figure: float(np.mean([run["scores"][kind][name][figure] for run in runs]))
                for figure in ("auroc", "false_accept_at_95", "false_accept", "true_accept")
            }
            for name in runs[0]["scores"][kind]
        }
        for kind in runs[0]["scores"]
    }


def mahalanobis(train: np.ndarray, labels: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Minus the squared distance to the nearest class mean, by the classes' shared covariance (Lee et al. 2018)."""
    centres = np.stack([train[labels == label].mean(0) for label in np.unique(labels)]).astype(np.float64)
    rest = train - centres[labels]
    covariance = rest.T @ rest / len(rest)
    covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    root = np.linalg.cholesky(np.linalg.inv(covariance))
    return {
        name: -(((rows[:, None] - centres) @ root) ** 2).sum(2).min(1).astype(np.float64)
        for name, rows in groups.items()
    }


def nearest(train: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The cosine with the k-th nearest training photo (Sun et al. 2022)."""
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    return {
        name: -np.sort(-(rows / np.linalg.norm(rows, axis=1, keepdims=True)) @ unit.T, axis=1)[:, NEIGHBOURS - 1]
        for name, rows in groups.items()
    }


def centres(train: np.ndarray, labels: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The cosine with the nearest of a few centres of each class: a small stand-in for all photos."""
    middles = familiar.centres(train, labels)
    return {
        name: (rows / np.linalg.norm(rows, axis=1, keepdims=True) @ middles.T).max(1) for name, rows in groups.items()
    }


def energy_of(logits: torch.Tensor) -> np.ndarray:
    """log(sum(exp(logits))) of (N, K): (N,)."""
    return logits.double().logsumexp(1).numpy()


def standardised(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With mean 0 and deviation 1 on the validation photos."""
    known = scores["validation"]
    return {name: (own - known.mean()) / known.std() for name, own in scores.items()}


def summed(*parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sum of several standardised scores."""
    kinds = [standardised(part) for part in parts]
    return {name: np.sum([kind[name] for kind in kinds], axis=0) for name in parts[0]}


def pictures_of_nothing(folder: Path) -> dict[str, Photos]:
    """Pictures that are no photos of flowers, made by program: `EACH` of each kind, as files."""
    found = {}
    for kind, make in (("textures", texture), ("noise", noise), ("drawings", drawing), ("blank frames", blank)):
        root = folder / kind
        root.mkdir()
        for index in range(EACH):
            make(np.random.default_rng([len(kind), index]), index).save(root / f"{index:03}.png")
        paths = tuple(sorted(path.name for path in root.iterdir()))
        found[kind] = Photos(root, paths, np.zeros(EACH, np.int64), (kind,))
    return found


def texture(rng: np.random.Generator, index: int) -> Image.Image:
    """Stripes, checks and clouds in random colours, softened."""
    y, x = np.mgrid[:256, :256] / 256
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(3, 40)
    waves = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)))
    if index % 3 == 1:
        waves = waves * np.sin(2 * np.pi * frequency * (y * np.cos(angle) - x * np.sin(angle)))
    if index % 3 == 2:
        cells = int(rng.integers(4, 40))
        small = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
        waves = np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC)) / 127.5 - 1
    share = (waves[..., None] + 1) / 2
    one, other = rng.uniform(0, 255, (2, 3))
    image = Image.fromarray(np.clip(one * share + other * (1 - share), 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))


def noise(rng: np.random.Generator, index: int) -> Image.Image:
    """Each pixel by itself: uniform, or normal around a colour."""
    if index % 2:
        return Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8))
    pixels = rng.normal(rng.uniform(40, 215, 3), rng.uniform(10, 80), (256, 256, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def drawing(rng: np.random.Generator, index: int) -> Image.Image:
    """A flower as `handlens draw-flowers` draws it: of the same classes, but no photo."""
    return picture(DRAWN[index % len(DRAWN)], index // len(DRAWN), 224)[0]


def blank(rng: np.random.Generator, index: int) -> Image.Image:
    """One colour with a sensor's faint noise, as a lens cap, a wall or the sky gives it."""
    level = rng.uniform(0, 255, 3) if index % 2 else np.repeat(rng.uniform(0, 255), 3)
    pixels = rng.normal(level, rng.uniform(0, 4), (256, 256, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
