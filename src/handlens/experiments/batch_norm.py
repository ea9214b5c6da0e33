"""Batch normalisation: Ioffe and Szegedy 2015, arXiv 1502.03167."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from handlens import nets
from handlens.errors import counted
from handlens.evaluate.metrics import wilson
from handlens.experiments import small
from handlens.experiments.result import Result, panels
from handlens.preprocess import Preprocess

KEEPS = (0.5, 0.9, 0.99, 0.999)  # share of the old value in running = keep * running + (1 - keep) * batch
BATCH_SIZES = (2, 4, 8, 16, 32)
NET = "resnet20"
LR_PER_PHOTO = 0.05 / 16


class Running(NamedTuple):
    """The statistics that are used in evaluation, (C,) each."""

    mean: Tensor
    var: Tensor


def batch_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    running: Running,
    keep: float = 0.9,
    training: bool = True,
    eps: float = 1e-5,
) -> tuple[Tensor, Running]:
    """Batch norm of (B, C, H, W) written out, and the running statistics after it.

    The batch is normalised by its biased variance (divided by m); the running variance takes the unbiased one (divided
    by m - 1), as in the paper's Algorithm 2 and in torch, whose `momentum` is 1 - keep.
    """
    if training:
        over = (0, 2, 3)
        mean, var = x.mean(over), x.var(over, correction=0)
        count = x.numel() // x.shape[1]
        unbiased = var * count / (count - 1)
        running = Running(
            keep * running.mean + (1 - keep) * mean.detach(), keep * running.var + (1 - keep) * unbiased.detach()
        )
    else:
        mean, var = running
    mean, var, scale, shift = (values.view(1, -1, 1, 1) for values in (mean, var, scale, shift))
    return (x - mean) / torch.sqrt(var + eps) * scale + shift, running


def experiment(
    seed: int = 0,
    epochs: int = 6,
    photos: str | None = None,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    image_px: int = 24,
    most: int = small.MOST_PHOTOS,
    progress: small.Progress = None,
) -> Result:
    """The layer against torch's, both momentum conventions, the bias before it, and trainings by batch size."""
    data = small.load(photos, image_px, seed, most)
    tick = small.ticker(progress, sum(small.steps(data, epochs, size) for size in batch_sizes))
    agreement = against_torch(seed)
    bias = with_and_without_bias(seed)
    momentum = [conventions(keep, seed) for keep in KEEPS]
    noise = [noise_of(data, size, seed) for size in batch_sizes]
    trained = [_trained(data, size, epochs, seed, tick) for size in batch_sizes]
    smallest, best = trained[0], max(trained, key=lambda row: row["test_top1"])
    return Result(
        finding=f"Written out, it is within {max(agreement.values()):.0e} of torch's layer. running = 0.9 * running + "
        f"0.1 * batch is torch's momentum 0.1 and Keras' 0.9; it takes {_of(momentum, 0.9)['steps_to_1_percent']} "
        f"steps to forget all but 1 % of where it began. A bias before it changes the output by {bias['output']:.0e} "
        f"and gets a gradient of {bias['bias_gradient']:.0e}: it does nothing. The mean of a batch of {batch_sizes[0]} "
        f"photos is off by {noise[0]['mean_noise']:.0%} of a deviation, of {batch_sizes[-1]} by "
        f"{noise[-1]['mean_noise']:.0%}. Trained for {counted(epochs, 'epoch')} with batches of "
        f"{smallest['batch_size']}: top-1 {smallest['test_top1']:.1%}; best with {best['batch_size']}: "
        f"{best['test_top1']:.1%} (the rate grows with the batch, the number of steps falls).",
        tables={
            "running = keep * running + (1 - keep) * batch": momentum,
            "Statistics of a batch against those of all photos": noise,
            f"{NET}, {image_px} px, {counted(epochs, 'epoch')}": trained,
        },
        numbers={"difference_from_torch": agreement, "difference_by_bias": bias},
        data={**data.facts, "seed": seed, "epochs": epochs, "lr": f"{LR_PER_PHOTO:.5f} a photo of the batch"},
        figure=_figure(momentum, noise, trained),
    )


def against_torch(seed: int, steps: int = 50) -> dict[str, float]:
    """Greatest differences from torch's layer over some training steps and an evaluation, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    layer = nn.BatchNorm2d(5, momentum=0.1, dtype=torch.float64)
    scale, shift = layer.weight.detach().copy_(random(5)), layer.bias.detach().copy_(random(5))
    running = Running(torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64))
    worst = dict.fromkeys(("training_output", "running_mean", "running_var", "evaluation_output"), 0.0)

    def note(name: str, ours: Tensor, theirs: Tensor | None) -> None:
        assert theirs is not None
        worst[name] = max(worst[name], float((ours - theirs).detach().abs().max()))

    for _ in range(steps):
        x = 3 * random(8, 5, 4, 4) + random(1, 5, 1, 1)
        ours, running = batch_norm(x, scale, shift, running)
        note("training_output", ours, layer(x))
    note("running_mean", running.mean, layer.running_mean)
    note("running_var", running.var, layer.running_var)
    x = random(8, 5, 4, 4)
    note("evaluation_output", batch_norm(x, scale, shift, running, training=False)[0], layer.eval()(x))
    return worst


def with_and_without_bias(seed: int) -> dict[str, float]:
    """What a bias in the convolution before batch norm changes, and the gradient that it gets, in float64."""
    torch.manual_seed(seed)
    biased = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).double()
    plain = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)).double()
    convolution, without = biased[0], plain[0]
    assert isinstance(convolution, nn.Conv2d) and isinstance(without, nn.Conv2d) and convolution.bias is not None
    without.weight.data.copy_(convolution.weight.data)
    x = torch.randn(8, 3, 9, 9, dtype=torch.float64)
    output, other = biased(x), plain(x)
    (output * torch.randn_like(output)).sum().backward()
    assert convolution.bias.grad is not None
    means = [net.state_dict()["1.running_mean"] for net in (biased, plain)]
    shift = means[0] - means[1] - 0.1 * convolution.bias.detach()
    return {
        "output": float((output - other).detach().abs().max()),
        "bias_gradient": float(convolution.bias.grad.abs().max()),
        "running_mean_shift_beyond_bias": float(shift.abs().max()),
    }


def conventions(keep: float, seed: int, layers: int = 2000) -> dict[str, Any]:
    """One way of keeping a running mean, named both ways: how slowly it forgets, how much it shakes.

    The noise is that of `layers` running means of random batches, in deviations of one batch's mean.
    """
    steps = math.ceil(math.log(0.01) / math.log(keep))
    generator = torch.Generator().manual_seed(seed)
    running = torch.zeros(layers, dtype=torch.float64)
    for _ in range(steps):
        running = keep * running + (1 - keep) * torch.randn(layers, generator=generator, dtype=torch.float64)
    return {
        "keep": keep,
        "torch_momentum": round(1 - keep, 6),
        "keras_momentum": keep,
        "steps_to_1_percent": steps,
        "noise_measured": float(running.std()),
        "noise_by_formula": math.sqrt((1 - keep) / (1 + keep)),
    }


def noise_of(data: small.Small, batch_size: int, seed: int, batches: int = 200) -> dict[str, Any]:
    """How far the statistics of random batches lie from those of all photos, after a random first convolution."""
    torch.manual_seed(seed)
    with torch.inference_mode():
        contract = Preprocess(mean=small.HALF, std=small.HALF)
        maps = nn.Conv2d(3, 16, 3)(small.as_input(data.train.images, contract))
        means, squares = maps.mean((2, 3)), maps.square().mean((2, 3))  # of each photo and channel
        mean = means.mean(0)
        var = squares.mean(0) - mean.square()
        drawn = torch.randint(len(means), (batches, batch_size))
        off_mean = means[drawn].mean(1) - mean
        off_var = squares[drawn].mean(1) - means[drawn].mean(1).square() - var
    return {
        "batch_size": batch_size,
        "mean_noise": float((off_mean.square().mean(0) / var).mean().sqrt()),
        "var_noise": float((off_var / var).square().mean().sqrt()),
    }


def _trained(data: small.Small, batch_size: int, epochs: int, seed: int, tick: Any) -> dict[str, Any]:
    net = small.create(functools.partial(nets.create, NET, data.num_classes), seed)
    rate = LR_PER_PHOTO * batch_size
    log = small.fit(net, data, epochs, tick, seed=seed, lr=rate, batch_size=batch_size)
    top1 = log[-1]["test_top1"]
    low, high = wilson(round(top1 * len(data.test)), len(data.test))
    return {
        "batch_size": batch_size,
        "lr": rate,
        "train_loss": log[-1]["train_loss"],
        "test_loss": log[-1]["test_loss"],
        "test_top1": top1,
        "test_top1_low": low,
        "test_top1_high": high,
    }


def _of(rows: list[dict[str, Any]], keep: float) -> dict[str, Any]:
    return next(row for row in rows if row["keep"] == keep)


def _figure(momentum: list[Any], noise: list[Any], trained: list[Any]) -> Any:
    figure, (left, middle, right) = panels(3)
    steps = range(201)
    for row in momentum:
        left.plot(
            steps,
            [row["keep"] ** step for step in steps],
            label=f"torch {row['torch_momentum']:g}, Keras {row['keep']:g}",
        )
    left.set(xlabel="steps", ylabel="share of the first value left")
    left.legend(title="momentum", fontsize=8)
    sizes = [row["batch_size"] for row in noise]
    for key, label in (("mean_noise", "mean"), ("var_noise", "variance")):
        middle.loglog(sizes, [row[key] for row in noise], marker="o", label=f"of the {label}")
    middle.loglog(
        sizes, [noise[0]["mean_noise"] * (sizes[0] / s) ** 0.5 for s in sizes], "k:", label="1 / root of size"
    )
    middle.set(xlabel="photos a batch", ylabel="noise of a batch's statistics")
    middle.legend(fontsize=8)
    right.semilogx(sizes, [row["test_top1"] for row in trained], marker="o")
    right.fill_between(
        sizes, [row["test_top1_low"] for row in trained], [row["test_top1_high"] for row in trained], alpha=0.2
    )
    right.set(xlabel="photos a batch", ylabel="test top-1, 95 % interval")
    for panel in (middle, right):
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
    for panel in (left, middle, right):
        panel.grid(alpha=0.3)
    return figure
