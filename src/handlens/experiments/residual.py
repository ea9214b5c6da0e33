"""Residual against plain networks: He et al. 2015, arXiv 1512.03385, section 4.2 and Figure 6."""

from __future__ import annotations

import functools
from typing import Any

from handlens import cost, nets
from handlens.errors import counted
from handlens.evaluate.metrics import wilson
from handlens.experiments import small
from handlens.experiments.result import Result, panels

NETS = {"plain20": "tab:red", "plain56": "tab:purple", "resnet20": "tab:blue", "resnet56": "tab:green"}
LR, BATCH_SIZE = 0.05, 16


def experiment(
    seed: int = 0,
    epochs: int = 12,
    photos: str | None = None,
    image_px: int = 24,
    most: int = small.MOST_PHOTOS,
    progress: small.Progress = None,
) -> Result:
    """The CIFAR networks of 20 and 56 layers with and without shortcuts, trained alike."""
    data = small.load(photos, image_px, seed, most)
    tick = small.ticker(progress, len(NETS) * small.steps(data, epochs, BATCH_SIZE))
    logs: dict[str, list[dict[str, float]]] = {}
    rows: list[dict[str, Any]] = []
    for name in NETS:
        net = small.create(functools.partial(nets.create, name, data.num_classes), seed)
        logs[name] = log = small.fit(net, data, epochs, tick, seed=seed, lr=LR, batch_size=BATCH_SIZE)
        low, high = wilson(round(log[-1]["test_top1"] * len(data.test)), len(data.test))
        rows.append(
            {
                "net": name,
                "weights": cost.count_params(net),
                "train_loss": log[-1]["train_loss"],
                "train_top1": log[-1]["train_top1"],
                "test_loss": log[-1]["test_loss"],
                "test_top1": log[-1]["test_top1"],
                "test_top1_low": low,
                "test_top1_high": high,
            }
        )
    loss = {row["net"]: row["train_loss"] for row in rows}
    degraded = loss["plain56"] > loss["plain20"]
    helped, ahead = loss["resnet56"] < loss["plain56"], loss["resnet56"] < loss["resnet20"]
    return Result(
        finding=f"Training loss after {counted(epochs, 'epoch')}: plain {loss['plain20']:.2f} with 20 layers and "
        f"{loss['plain56']:.2f} with 56, residual {loss['resnet20']:.2f} and {loss['resnet56']:.2f}. "
        + ("More layers make the plain network worse on its own training photos" if degraded else
           "More layers do not make the plain network worse here, which is not what the paper finds")
        + ((", and shortcuts cure it" if ahead else ", and shortcuts lessen it" if helped else ", with shortcuts too")
           if degraded else "")
        + (". With shortcuts the 56 layers are also ahead of the 20, as in the paper."
           if ahead else
           f". That 56 layers with shortcuts pass 20, as after the paper's 164 epochs, is not seen in {epochs}."),
        tables={f"{image_px} px, {counted(epochs, 'epoch')}": rows},
        numbers={"logs": logs},
        data={**data.facts, "seed": seed, "epochs": epochs},
        figure=_figure(logs),
    )  # fmt: skip


def _figure(logs: dict[str, list[dict[str, float]]]) -> Any:
    figure, axes = panels(2)
    for panel, key in zip(axes, ("train_loss", "test_top1"), strict=True):
        for name, log in logs.items():
            style = "--" if name.startswith("plain") else "-"
            panel.plot([r["epoch"] for r in log], [r[key] for r in log], style, color=NETS[name], label=name)
        panel.set(xlabel="epoch", ylabel=key.replace("_", " "))
        panel.grid(alpha=0.3)
    axes[0].legend()
    return figure
