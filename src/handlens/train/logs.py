"""What a run writes down while it learns: a CSV, TensorBoard's events, and the curves as a picture."""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from handlens import figures, files
from handlens.errors import HandlensError

Log = Sequence[dict[str, float]]


def write_csv(path: Path, log: Log, note: Callable[[str], None] = lambda text: None) -> None:
    """A row an epoch, atomically: after a crash the file is whole.

    Where another program has it open, which on Windows keeps it from being replaced, it stays as it is and `note` is
    told: no reason to end a training.
    """
    try:
        with files.atomic(path, "w") as file:
            writer = csv.DictWriter(file, fieldnames=list(log[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in log)
    except HandlensError as error:
        if not (path.exists() and isinstance(error.__cause__, PermissionError)):
            raise
        note(f"{path} lacks the last epoch, for another program has it open")


def write_events(folder: Path, log: Log) -> None:
    """Append rows as TensorBoard scalars; what the folder holds of these epochs or later ones is dropped.

    TensorBoard reads files in the order of their names. Its writer's end in a number that is not padded, by which the
    tenth file of a second comes before the ninth, and would drop it: so they are named here.
    """
    from torch.utils.tensorboard import SummaryWriter

    first = int(log[0]["epoch"])
    with tempfile.TemporaryDirectory() as work:
        with SummaryWriter(work, purge_step=first) as writer:
            for row in log:
                for key, value in row.items():
                    if key != "epoch":
                        writer.add_scalar(key.replace("_", "/", 1), value, int(row["epoch"]))
        (written,) = Path(work).iterdir()
        with files.atomic(folder / f"events.out.tfevents.{int(time.time()):010d}.epoch-{first:06d}") as file:
            file.write(written.read_bytes())


def curves(log: Log, kept_epoch: int) -> bytes:
    """Loss and top-1 of training and validation, and the learning rate, against epochs: PNG bytes.

    A line marks the epoch that is kept.
    """
    epochs = [row["epoch"] for row in log]
    figure = figures.figure(11, 3.4)
    panels = figure.subplots(1, 3)
    for panel, key, label in ((panels[0], "loss", "cross-entropy"), (panels[1], "top1", "top-1")):
        for split, style in (("train", "--"), ("validation", "-")):
            panel.plot(epochs, [row[f"{split}_{key}"] for row in log], style, label=split, marker=".", markersize=4)
        panel.axvline(kept_epoch, color="tab:gray", linewidth=0.8, label="kept", zorder=0)
        panel.set(xlabel="epoch", ylabel=label)
        panel.legend()
        panel.grid(alpha=0.3)
    panels[2].plot(epochs, [row["lr"] for row in log], color="tab:green")
    panels[2].set(xlabel="epoch", ylabel="learning rate")
    panels[2].grid(alpha=0.3)
    return figures.png(figure)
