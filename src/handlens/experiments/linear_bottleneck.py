"""The linear bottleneck left out: Sandler et al. 2018, arXiv 1801.04381, section 6.4 and Figure 6a."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from torch import nn

from handlens import nets
from handlens.errors import counted
from handlens.evaluate.metrics import wilson
from handlens.experiments import small
from handlens.experiments.result import Result, panels
from handlens.nets.mobilenet_v2 import InvertedResidual

WIDTH, LR = 0.35, 0.03


def experiment(
    seed: int = 0,
    epochs: int = 20,
    photos: str | None = None,
    draws: int = 2,
    image_px: int = 64,
    most: int = small.MOST_PHOTOS,
    progress: small.Progress = None,
) -> Result:
    """MobileNetV2 with linear bottlenecks and with ReLU6 after them, trained from `draws` first weights each."""
    data = small.load(photos, image_px, seed, most)
    tick = small.ticker(progress, 2 * draws * small.steps(data, epochs, 32))
    rows: list[dict[str, Any]] = []
    logs: dict[str, list[list[dict[str, float]]]] = {"linear": [], "ReLU6": []}
    for kind, of_kind in logs.items():
        for draw in range(draws):
            net = small.create(functools.partial(build, kind, data.num_classes), seed + draw)
            of_kind.append(small.fit(net, data, epochs, tick, seed=seed + draw, lr=LR))
        last = [log[-1] for log in of_kind]
        right = round(sum(row["test_top1"] for row in last) * len(data.test))
        rows.append(
            {
                "bottleneck": kind,
                "test_top1": right / draws / len(data.test),
                "test_top1_by_draw": [round(row["test_top1"], 4) for row in last],
                "test_loss": statistics.fmean(row["test_loss"] for row in last),
                "train_loss": statistics.fmean(row["train_loss"] for row in last),
            }
        )
    figure, axes = panels(2)
    for kind, colour in (("linear", "tab:blue"), ("ReLU6", "tab:orange")):
        for draw, log in enumerate(logs[kind]):
            for panel, key in ((axes[0], "test_top1"), (axes[1], "train_loss")):
                label = f"{kind} bottleneck" if draw == 0 else None
                panel.plot([r["epoch"] for r in log], [r[key] for r in log], color=colour, label=label)
                panel.set(xlabel="epoch", ylabel=key.replace("_", " "))
                panel.grid(alpha=0.3)
    axes[0].legend()
    linear, relu6 = rows
    gain = linear["test_top1"] - relu6["test_top1"]
    low, high = wilson(round(linear["test_top1"] * len(data.test)), len(data.test))
    tops = [row["test_top1_by_draw"] for row in rows]
    spread = max(max(top1s) - min(top1s) for top1s in tops)
    noise = max((high - low) / 2, spread)
    verdict = (
        "as in the paper the linear one is better"
        if gain > noise
        else "the linear one is worse, which is not what the paper finds"
        if gain < -noise
        else "a difference that this experiment cannot tell from chance: the paper's gain, about a point on ImageNet, "
        "can be neither seen nor denied here"
    )
    return Result(
        finding=f"Top-1 {linear['test_top1']:.1%} with linear bottlenecks and {relu6['test_top1']:.1%} with ReLU6 "
        f"after them, means of {draws} trainings; the number of test photos leaves ± {(high - low) / 2:.1%} open, and "
        f"the first weights {spread:.1%}: {verdict}.",
        tables={f"MobileNetV2 at width {WIDTH}, {image_px} px, {counted(epochs, 'epoch')}": rows},
        numbers={"gain_of_linear": gain, "half_interval95": (high - low) / 2, "spread_of_draws": spread, "logs": logs},
        data={**data.facts, "seed": seed, "draws": draws, "epochs": epochs},
        figure=figure,
    )


def build(kind: str, num_classes: int) -> nets.Net:
    """MobileNetV2 with "linear" bottlenecks, or with "ReLU6" after each."""
    net = nets.create("mobilenet_v2", num_classes, width=WIDTH, dropout=0.0)
    if kind == "ReLU6":
        for module in net.modules():
            if isinstance(module, InvertedResidual):
                module.conv.append(nn.ReLU6())
    return net
