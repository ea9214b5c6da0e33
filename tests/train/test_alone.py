"""A run's folder is trained in by one process at a time, and is free when that has ended, however it ended."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from handlens.errors import HandlensError
from handlens.train import alone

HOLDS = """
import sys, time
from pathlib import Path
from handlens.train.alone import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_free_when_the_process_is_killed(tmp_path: Path) -> None:
    alone.check_alone(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline().strip() == b"held"
        for _ in range(2):  # who is refused takes nothing away
            with pytest.raises(HandlensError, match=r"is being trained by another process; wait for it"):
                alone.check_alone(tmp_path)
            with pytest.raises(HandlensError, match="is being trained"), alone.alone(tmp_path):
                pytest.fail("two in one folder")
        process.kill()
    alone.check_alone(tmp_path)
    with alone.alone(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl is of the other systems")
def test_where_there_are_no_locks_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with alone.alone(tmp_path), alone.alone(tmp_path):
        alone.check_alone(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_the_training_raises_comes_out(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="of the training"), alone.alone(tmp_path):
        raise OSError("of the training")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no open file is removed there")
def test_a_lock_that_its_last_holder_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, locked = alone._lock, 0

    def late(descriptor: int, folder: Path) -> None:
        nonlocal locked
        lock(descriptor, folder)
        locked += 1
        if locked == 1:
            (folder / alone._LOCK).unlink()

    monkeypatch.setattr(alone, "_lock", late)
    with alone.alone(tmp_path), pytest.raises(HandlensError, match="is being trained"):
        alone.check_alone(tmp_path)
