"""The training loop: epochs of augmented batches, judged on validation, resumable from any step.

Every random choice of step s in epoch e comes from the seed, e and s, so that a run that was interrupted and goes on
gives the figures of one that was not.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from handlens.errors import HandlensError, counted
from handlens.nets import Net, set_stochastic_depth
from handlens.nets.pixels import by_photo
from handlens.preprocess import Preprocess
from handlens.train import augment
from handlens.train.captured import captured
from handlens.train.depthwise import FasterDepthwise
from handlens.train.distil import Teacher
from handlens.train.pixels import Fixed, Pixels
from handlens.train.recipe import Recipe
from handlens.train.state import check_processes, read_state, spent_s, write_state

_SAVE_EVERY_S = 300.0
MOST_WEIGHT = 10.0  # of a class, in weights of the largest class


@dataclasses.dataclass
class Step:
    """What the loop tells after each step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    photos_per_s: float
    seconds_left: float


def prepare(net: Net, recipe: Recipe) -> Net:
    """Set the classifier's dropout, stochastic depth and batch norm as the recipe says; freeze what is not trained."""
    for module in net.classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = recipe.dropout
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = recipe.bn_momentum
    set_stochastic_depth(net, recipe.stochastic_depth)
    if recipe.mode == "last":
        for block in net.blocks()[: -recipe.last_blocks]:
            block.requires_grad_(False)
    return net.to(memory_format=torch.channels_last)


def training_mode(net: Net, recipe: Recipe) -> None:
    """Training mode, but evaluation mode where the statistics of batch norm are not to move."""
    net.train()
    frozen = net.blocks()[: -recipe.last_blocks] if recipe.mode == "last" else []
    for block in frozen:
        block.eval()
    if recipe.freeze_bn:
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def parameter_groups(net: Net, recipe: Recipe) -> list[dict[str, Any]]:
    """Backbone and classifier at their own rates; biases and norms (one dimension or fewer) without weight decay."""
    head = {id(parameter) for parameter in net.classifier.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in net.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in head, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": recipe.lr * (1.0 if in_head else recipe.backbone_lr_ratio),
            "peak_lr": recipe.lr * (1.0 if in_head else recipe.backbone_lr_ratio),
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (in_head, decayed), parameters in groups.items()
    ]


def optimizer_for(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True)


def rate_at(progress_epochs: float, recipe: Recipe) -> float:
    """The learning rate as a share of its peak: a straight line up over the warm-up, then a half cosine to 1 %."""
    if progress_epochs < recipe.warmup_epochs:
        return max(1e-3, progress_epochs / recipe.warmup_epochs)
    done = (progress_epochs - recipe.warmup_epochs) / max(1e-9, recipe.epochs - recipe.warmup_epochs)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def order_of(labels: np.ndarray, recipe: Recipe, epoch: int) -> np.ndarray:
    """Indices of the photos of an epoch, shuffled; with balance "sampling" every class equally often."""
    rng = np.random.default_rng([recipe.seed, epoch])
    if recipe.balance == "sampling":
        weights = 1 / np.bincount(labels)[labels]
        return rng.choice(len(labels), size=len(labels), p=weights / weights.sum())
    return rng.permutation(len(labels))


def batches_of(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The order cut into batches; a last one of a single photo joins the one before, for batch norm needs two."""
    cuts = list(range(batch_size, len(order), batch_size))
    if cuts and len(order) - cuts[-1] == 1:
        cuts.pop()
    return np.split(order, cuts)


class Batches:
    """Makes the augmented, normalised batch of a step on the device."""

    def __init__(self, pixels: Pixels, recipe: Recipe, preprocess: Preprocess, device: torch.device) -> None:
        self.pixels, self.recipe, self.device = pixels, recipe, device
        self.px = recipe.train_px or preprocess.image_px  # of the epoch at hand
        self.min_area = recipe.crop_min_area if recipe.augment != "none" else 1.0
        self.flips = recipe.flip and recipe.augment != "none"
        self.labels = pixels.photos.labels
        self.num_classes = len(pixels.photos.classes)
        self.mean = torch.tensor(preprocess.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(preprocess.std, device=device).view(1, 3, 1, 1)
        self.bgr = preprocess.channels == "bgr"
        self.normalisation = preprocess.normalisation

    def make(self, indices: np.ndarray, seed: list[int]) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, px, px) and target probabilities (B, K) of the photos at `indices`."""
        recipe, rng = self.recipe, np.random.default_rng(seed)
        images = self.crops(indices, rng)
        if recipe.augment == "trivial":
            images = augment.trivial_augment(images, rng)
        labels = augment.over(torch.from_numpy(self.labels[indices]), self.device)
        targets = F.one_hot(labels, self.num_classes).float()
        images, targets = augment.mix(images, targets, recipe.mixup_alpha, recipe.cutmix_alpha, rng)
        targets = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / self.num_classes
        return self.normalise(images), targets

    def crops(self, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Random parts of the photos at `indices`, mirrored or not: float (B, 3, px, px) in [0, 1] on the device."""
        images = augment.random_crops(self.pixels.get(indices.tolist()), self.px, self.min_area, rng)
        if self.flips:
            images = augment.flip(images, rng)
        return augment.over(images, self.device).float().div_(255)

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1] -> what the network takes, in channels-last memory."""
        images = (by_photo(images, self.normalisation) - self.mean) / self.std
        return (images.flip(1) if self.bgr else images).contiguous(memory_format=torch.channels_last)

    def plain(self, images: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) -> what the network takes, on the device."""
        return self.normalise(torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 255)


def soft_cross_entropy(logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy (a scalar) of logits (B, K) with target probabilities (B, K), classes weighted (K,) if given.

    A photo counts by the weights of its own classes. Weights within its sum over classes, as torch's cross_entropy has
    them, would raise what smoothing leaves to a rare class on every photo of a common one, up to ten times.
    """
    losses = -(targets * F.log_softmax(logits.float(), dim=1)).sum(1)
    if class_weights is None:
        return losses.mean()
    counts = targets @ class_weights
    return (losses * counts).sum() / counts.sum()


def class_weights_of(labels: np.ndarray, num_classes: int) -> Tensor:
    """1 / count of each class, the largest at most ten times the smallest, scaled to a mean over the photos of 1: (K,).

    Without that bound a class of one stray photo would decide each step that shows it.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = 1 / np.maximum(counts, counts.max() / MOST_WEIGHT)
    return torch.from_numpy(weights / weights[labels].mean()).float()


def loss_of(net: Any, images: Tensor, targets: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss (a scalar; auxiliary classifiers counted at the network's `aux_weight`) and the logits (B, K).

    net: a `Net`, or one that Fabric wraps.
    """
    logits, auxiliary = net.forward_train(images)
    loss = soft_cross_entropy(logits, targets, class_weights)
    for extra in auxiliary:
        loss = loss + net.aux_weight * soft_cross_entropy(extra, targets, class_weights)
    return loss, logits


class Average:
    """The running average of a network's weights and statistics; young averages forget faster."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average towards `net` by 1 - decay, or more in the first steps."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        own, new = self.net.state_dict(), net.state_dict()
        floats = [key for key in own if own[key].is_floating_point()]
        torch._foreach_lerp_([own[key] for key in floats], [new[key] for key in floats], share)
        for key in own.keys() - set(floats):
            own[key].copy_(new[key])


class Kept:
    """Which epoch is kept of those that so many photos judged: the latest that is as good as the best one so far.

    epoch: the one kept, from 1 on. best_epoch: the first with the best top-1. Both are 0 before any.

    As good is a top-1 within one standard error of the best or within one photo of it, whichever is more: a few photos
    more are no evidence against weights that had longer to settle. A lower loss than that of the epoch kept will do
    too, for on a dozen photos an epoch of the warm-up may be the best by luck.
    """

    def __init__(self, num_photos: int, log: Iterable[dict[str, float]] = ()) -> None:
        """After the epochs of `log`, if there are any."""
        self.num_photos = max(1, num_photos)
        self.epoch, self.loss = 0, math.inf
        self.best_epoch, self.best_top1 = 0, -1.0
        for row in log:
            self.take(row)

    def take(self, row: dict[str, float]) -> bool:
        """Whether the next epoch, a row of the log, is kept in place of the one before."""
        top1, count = row["validation_top1"], self.num_photos
        if top1 > self.best_top1:
            self.best_epoch, self.best_top1 = int(row["epoch"]), top1
        share = (self.best_top1 * count + 1) / (count + 2)  # Laplace's: none would have no error where all are right
        tolerance = max(math.sqrt(share * (1 - share) / count), 1 / count) + 1e-6  # top1 may be rounded
        if taken := top1 >= self.best_top1 - tolerance or row["validation_loss"] < self.loss:
            self.epoch, self.loss = int(row["epoch"]), row["validation_loss"]
        return taken


def judge(net: nn.Module, photos: Fixed, make: Batches, fabric: Fabric) -> tuple[float, float]:
    """Mean cross-entropy and top-1 (a fraction) on photos as they are seen in use."""
    net.eval()
    loss, right, count = 0.0, 0, 0
    with torch.inference_mode(), fabric.autocast():
        for images, labels in photos:
            logits = net(make.plain(images)).float()
            truth = torch.from_numpy(labels).to(logits.device)
            loss += F.cross_entropy(logits, truth, reduction="sum").item()
            right += int((logits.argmax(1) == truth).sum())
            count += len(labels)
    return loss / max(1, count), right / max(1, count)


def fit(
    net: Net,
    train: Pixels | Batches,
    validation: Fixed,
    recipe: Recipe,
    preprocess: Preprocess,
    folder: Path,
    fabric: Fabric,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[list[dict[str, float]]], None] = lambda log: None,
    teacher: Teacher | None = None,
) -> tuple[Net, list[dict[str, float]]]:
    """Train `net` (already `prepare`d); return it as of the latest epoch that validation finds as good as the best
    (`Kept`), and a row a epoch. train: photos, or what makes the batches itself.

    Goes on from `folder`/state.pt when it is there; it is written after every epoch, every five minutes and at
    Ctrl-C, which raises KeyboardInterrupt. Raises HandlensError when the loss is no longer a number.
    """
    make = train if isinstance(train, Batches) else Batches(train, recipe, preprocess, fabric.device)
    weights = class_weights_of(make.labels, make.num_classes).to(fabric.device) if recipe.balance == "weights" else None
    model, optimizer = fabric.setup(net.to(fabric.device), optimizer_for(parameter_groups(net, recipe), recipe))
    model.mark_forward_method("forward_train")
    average = Average(net, recipe.ema_decay) if recipe.ema_decay else None
    if teacher:
        teacher.to(fabric.device)
    weights_kept: dict[str, Tensor] = {}
    log: list[dict[str, float]] = []
    at = {"epoch": 0, "step": 0, "loss": 0.0, "right": 0.0, "seen": 0.0, "seconds": 0.0}

    def save() -> None:
        if fabric.global_rank == 0:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "log": log, "at": at}
            state |= {"precision": fabric.strategy.precision.state_dict(), "processes": fabric.world_size}
            state |= {"best": {"weights": weights_kept}, "spent_s": earlier_s + time.monotonic() - since}
            if average:
                state |= {"average": average.net.state_dict(), "updates": average.updates}
            write_state(folder, state)

    since, earlier_s = time.monotonic(), spent_s(folder)
    if state := read_state(folder):
        check_processes(folder, fabric.world_size)
        if state.get("precision"):  # the scale of losses in float16
            fabric.strategy.precision.load_state_dict(state["precision"])
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        weights_kept, log, at = state["best"]["weights"], state["log"], state["at"]
        if average:
            average.net.load_state_dict(state["average"])
            average.updates = state["updates"]

    kept = Kept(len(validation.photos), log)
    through = None  # the model, captured where that is possible
    saved_at = time.monotonic()
    patience = recipe.patience_epochs or recipe.epochs
    grown = recipe.epochs // 2 if recipe.first_px else 0  # before, validation stands still: it shows things larger
    with _ctrl_c_between_steps(save) as heed_ctrl_c:
        while at["epoch"] < recipe.epochs and at["epoch"] - max(kept.best_epoch, grown) < patience:
            epoch = int(at["epoch"])
            if make.px != recipe.crop_px(epoch):
                make.px, through = recipe.crop_px(epoch), None
            order = order_of(make.labels, recipe, epoch)
            share = order[fabric.global_rank :: fabric.world_size][: len(order) // fabric.world_size]
            plan = batches_of(share, recipe.batch_size)
            training_mode(net, recipe)
            ahead = None  # the next step's batch
            for step in range(int(at["step"]), len(plan)):
                start = time.perf_counter()
                seed = [recipe.seed, epoch, step, fabric.global_rank]
                images, targets = ahead or make.make(plan[step], seed)
                if through is None and len(images) == recipe.batch_size and fabric.world_size == 1:
                    through = captured(model, net, images, recipe.precision)
                torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
                factor = rate_at(epoch + (step + 1) / len(plan), recipe)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * factor
                with fabric.autocast(), FasterDepthwise():
                    loss, logits = loss_of(through or model, images, targets, weights)
                    if teacher:
                        loss = teacher.loss(images, logits, loss)
                fabric.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                if average:
                    average.update(net)
                right = (logits.argmax(1) == targets.argmax(1)).sum()
                if step + 1 < len(plan):  # before the loss is read: while the card, if there is one, works on this step
                    ahead = make.make(plan[step + 1], [recipe.seed, epoch, step + 1, fabric.global_rank])
                value, num_right = torch.stack((loss.detach(), right)).tolist()
                if not math.isfinite(value):
                    raise HandlensError(
                        f"the loss became {value} in epoch {epoch + 1}",
                        f"remove this run, or choose another --out, and train with a lower --lr than {recipe.lr:g}",
                    )
                at["loss"] += value * len(images)
                at["right"] += num_right
                at["seen"] += len(images)
                at["seconds"] += time.perf_counter() - start
                at["step"] = step + 1
                on_step(_step(at, epoch, step, len(plan), recipe, fabric.world_size))
                heed_ctrl_c()
                if time.monotonic() - saved_at > _SAVE_EVERY_S:
                    save()
                    saved_at = time.monotonic()
            judged = average.net if average else net
            loss_v, top1_v = fabric.broadcast(judge(judged, validation, make, fabric))  # all stop at the same epoch
            log.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": at["loss"] / at["seen"],
                    "train_top1": at["right"] / at["seen"],
                    "validation_loss": loss_v,
                    "validation_top1": top1_v,
                    "lr": recipe.lr * rate_at(epoch + 1, recipe),
                    "photos_per_s": at["seen"] * fabric.world_size / at["seconds"],
                    "seconds": at["seconds"],
                }
            )
            if kept.take(log[-1]):
                weights_kept = {key: value.detach().cpu().clone() for key, value in judged.state_dict().items()}
            at = {"epoch": epoch + 1, "step": 0, "loss": 0.0, "right": 0.0, "seen": 0.0, "seconds": 0.0}
            save()
            saved_at = time.monotonic()
            on_epoch(log)
            heed_ctrl_c()
    net.load_state_dict(weights_kept)
    return net.eval(), log


@contextlib.contextmanager
def _ctrl_c_between_steps(save: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Gives `heed`: Ctrl-C takes effect where that is called, and `save` is called before KeyboardInterrupt leaves.

    In the middle of a step the weights and the count of steps disagree: a run that goes on from there would differ.
    """
    pressed = threading.Event()

    def heed() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()  # the only one that may set handlers
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield heed
    except KeyboardInterrupt:
        save()
        raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _step(at: dict[str, float], epoch: int, step: int, steps: int, recipe: Recipe, processes: int) -> Step:
    seconds_a_step = at["seconds"] / (step + 1)
    later = recipe.work(epoch + 1) / (recipe.work(epoch) - recipe.work(epoch + 1))  # in epochs such as this one
    return Step(
        epoch=epoch + 1,
        epochs=recipe.epochs,
        step=step + 1,
        steps=steps,
        loss=at["loss"] / at["seen"],
        photos_per_s=at["seen"] * processes / at["seconds"],
        seconds_left=((1 + later) * steps - step - 1) * seconds_a_step,
    )


def check_default_type() -> None:
    """Raise HandlensError where new tensors are not float32, in which networks are trained."""
    if torch.get_default_dtype() != torch.float32:
        raise HandlensError(
            f"torch's default type is {torch.get_default_dtype()}, expected torch.float32",
            "call torch.set_default_dtype(torch.float32) before a training",
        )


def check_enough(num_photos: int, processes: int) -> None:
    """Raise HandlensError where so many training photos leave a process less than batch norm needs, two of them."""
    if num_photos < 2 * processes:
        raise HandlensError(
            f"{counted(num_photos, 'training photo')} cannot be shared by {counted(processes, 'process')}, which need "
            "two each",
            f"give --devices {max(1, num_photos // 2)}, or add photos",
        )
