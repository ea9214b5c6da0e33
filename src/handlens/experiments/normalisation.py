"""The normalisations of the pixel contract: what each does to a photo's values, and to a training."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from handlens import nets
from handlens.errors import counted
from handlens.evaluate.metrics import wilson
from handlens.experiments import small
from handlens.experiments.result import Result, panels
from handlens.preprocess import IMAGENET_MEAN, IMAGENET_STD, NORMALISATIONS, Preprocess

BARE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # nothing after a photo's own normalisation
NET, BATCH_SIZE = "resnet20", 16
RATES = {"with batch norm": 0.05, "without batch norm": 0.02}
DIMMED = 0.4  # what pixel values are multiplied by in the second test
BINS = 64


def experiment(
    seed: int = 0,
    epochs: int = 8,
    photos: str | None = None,
    image_px: int = 24,
    most: int = small.MOST_PHOTOS,
    progress: small.Progress = None,
) -> Result:
    """Each normalisation: a photo's histogram; trainings with and without batch norm; the test in dimmer light."""
    data = small.load(photos, image_px, seed, most)
    builds = {
        "with batch norm": functools.partial(nets.create, NET, data.num_classes),
        "without batch norm": functools.partial(plain, data.num_classes),
    }
    tick = small.ticker(progress, len(NORMALISATIONS) * len(builds) * small.steps(data, epochs, BATCH_SIZE))
    dimmed = small.Side((data.test.images * DIMMED).to(torch.uint8), data.test.labels)
    photo = data.test.images[:1].numpy()
    values: list[dict[str, Any]] = []
    trained: list[dict[str, Any]] = []
    logs: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in builds}
    histograms: dict[str, Any] = {}
    for normalisation in NORMALISATIONS:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalisation == "fixed" else BARE
        contract = Preprocess(image_px=image_px, resize_px=image_px, normalisation=normalisation, mean=mean, std=std)
        normalised, darker = (contract.normalise(p) for p in (photo, (photo * DIMMED).astype(np.uint8)))
        counts, edges = np.histogram(normalised, BINS)
        histograms[normalisation] = {"counts": counts.tolist(), "edges": edges.tolist()}
        values.append(
            {
                "normalisation": normalisation,
                "least": float(normalised.min()),
                "greatest": float(normalised.max()),
                "mean": float(normalised.mean()),
                "deviation": float(normalised.std()),
                "length": float(np.sqrt(np.square(normalised.astype(np.float64)).sum())),
                "moved_by_dimming": float(np.abs(darker - normalised).mean() / normalised.std()),
            }
        )
        for kind, build in builds.items():
            net = small.create(build, seed)
            log = small.fit(
                net, data, epochs, tick, seed=seed, lr=RATES[kind], batch_size=BATCH_SIZE, contract=contract
            )
            low, high = wilson(round(log[-1]["test_top1"] * len(data.test)), len(data.test))
            logs[kind][normalisation] = log
            trained.append(
                {
                    "normalisation": normalisation,
                    "net": kind,
                    "train_loss": log[-1]["train_loss"],
                    "test_top1": log[-1]["test_top1"],
                    "test_top1_low": low,
                    "test_top1_high": high,
                    "test_top1_dimmed": small.judge(net, dimmed, contract)["test_top1"],
                }
            )
    of = {(row["net"], row["normalisation"]): row for row in trained}

    def every(kind: str, key: str) -> str:
        return ", ".join(f"{name} {of[kind, name][key]:.0%}" for name in NORMALISATIONS)

    return Result(
        finding=f"Top-1 with batch norm: {every('with batch norm', 'test_top1')}; without: "
        f"{every('without batch norm', 'test_top1')} (each ± {(high - low) / 2:.0%} by the number of test "
        f"photos). With pixel values times {DIMMED:g}, with batch norm: "
        f"{every('with batch norm', 'test_top1_dimmed')}. By L2 the photo's values are {values[-1]['mean']:.4f} on "
        f"average: the training loss ends at {of['with batch norm', 'l2']['train_loss']:.2f} with batch norm, which "
        f"brings them back to size, and at {of['without batch norm', 'l2']['train_loss']:.2f} without (by chance it is "
        f"{math.log(data.num_classes):.2f}).",
        tables={"Values of one photo": values, f"{image_px} px, {counted(epochs, 'epoch')}": trained},
        numbers={"histograms": histograms, "logs": logs},
        data={**data.facts, "seed": seed, "epochs": epochs, "nets": f"{NET}; three convolutions"},
        figure=_figure(histograms, logs),
    )


def plain(num_classes: int) -> nets.Net:
    """Three convolutions with ReLU and no batch norm, each halving the map, then a mean and a linear layer."""
    return _Plain(num_classes)


class _Plain(nets.Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inp, out in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inp, out, 3, stride=2, padding=1), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(64, num_classes))

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.convolutions(images)]


def _figure(histograms: dict[str, Any], logs: dict[str, Any]) -> Any:
    figure, axes = panels(len(NORMALISATIONS), 2, width=2.9, height=2.7)
    for panel, (name, histogram) in zip(axes, histograms.items(), strict=False):
        panel.stairs(histogram["counts"], histogram["edges"], fill=True)
        panel.set(title=name, yticks=[])
    for column, (kind, key) in enumerate((k, m) for k in logs for m in ("train_loss", "test_top1")):
        panel = axes[len(NORMALISATIONS) + column]
        for name, log in logs[kind].items():
            panel.plot([row["epoch"] for row in log], [row[key] for row in log], label=name)
        panel.set(title=f"{key.replace('_', ' ')}\n{kind}", xlabel="epoch")
        panel.grid(alpha=0.3)
    handles, labels = axes[len(NORMALISATIONS)].get_legend_handles_labels()
    axes[-1].axis("off")
    axes[-1].legend(handles, labels, loc="center")
    return figure
