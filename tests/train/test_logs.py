"""What a training writes about its epochs."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import pytest

from handlens.errors import HandlensError
from handlens.train import logs

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
