"""What a training writes about its epochs."""

from __future__ import annotations

import csv
import errno
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens.errors import HandlensError
from handlens.train import logs
from handlens.train.logs import curves

LOG = [{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.25}]


def test_a_row_an_epoch(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / "log.csv", LOG)
    with (tmp_path / "log.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"epoch": "1", "train_loss": "0.5"},
            {"epoch": "2", "train_loss": "0.25"},
        ]


def test_a_log_that_another_program_has_open_does_not_end_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, notes = tmp_path / "log.csv", list[str]()
    logs.write_csv(path, LOG[:1])
    before = path.read_bytes()

    def in_use(*_: object) -> None:
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(os, "replace", in_use)
    logs.write_csv(path, LOG, notes.append)
    assert notes == [f"{path} lacks the last epoch, for another program has it open"]
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["log.csv"]
    with pytest.raises(HandlensError, match="may not be written"):  # a folder that cannot be written to
        logs.write_csv(tmp_path / "other.csv", LOG, notes.append)


def test_epochs_of_one_second_are_all_shown_and_one_that_is_done_again_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    for epoch in range(1, 13):
        logs.write_events(tmp_path, [{"epoch": epoch, "train_loss": 0.5}])
    assert scalars(tmp_path, "train/loss") == [(epoch, 0.5) for epoch in range(1, 13)]
    now += 60
    for epoch in (11, 12, 13):  # as --resume does after kill -9
        logs.write_events(tmp_path, [{"epoch": epoch, "train_loss": 0.25}])
    assert scalars(tmp_path, "train/loss") == [(epoch, 0.5 if epoch < 11 else 0.25) for epoch in range(1, 14)]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves_of_one_epoch_and_of_more(epochs: int) -> None:
    row = {"train_loss": 1.0, "train_top1": 0.5, "validation_loss": 1.0, "validation_top1": 0.5, "lr": 0.1}
    picture = Image.open(io.BytesIO(curves([{"epoch": 1.0 + k, **row} for k in range(epochs)], epochs)))
    assert picture.size == (1210, 374) and np.asarray(picture.convert("L")).min() < 50
