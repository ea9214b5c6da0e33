"""Another process looks at the photos, and stops when it is told to."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlens import cores
from handlens.files import cache_folder
from handlens.photos import Findings, ahead, examine, scan
from handlens.photos.ahead import looking_ahead

Make = Callable[..., Path]
ROOM = sys.modules["handlens.photos.examine"]
pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that were begun."""
    processes = []
    real = subprocess.Popen

    def begin(*args: object, **more: object) -> object:
        processes.append(real(*args, **more))  # type: ignore[call-overload]
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", begin)
    monkeypatch.setattr(cores, "available", lambda: 2)
    return processes


def test_what_it_has_seen_is_not_looked_at_again(
    make_folder: Make, begun: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder({"a": 4, "b": 2})
    (folder / "a" / "broken.png").write_bytes(b"no photo")
    with looking_ahead(folder):
        begun[0].wait(60)
    opened: list[bytes] = []
    real = ROOM.open_photo

    def open_photo(data: bytes) -> object:
        opened.append(data)
        return real(data)

    monkeypatch.setattr(ROOM, "open_photo", open_photo)
    findings = examine(scan(folder))
    assert opened == [b"no photo"] and len(findings.pixels) == 6 and len(findings.broken) == 1


def test_it_stops_at_once(make_folder: Make, begun: list[subprocess.Popen[bytes]]) -> None:
    folder = make_folder({"a": 400, "b": 2})
    with looking_ahead(folder):
        assert begun[0].poll() is None
    assert begun[0].returncode == 0
    assert len(examine(scan(folder)).pixels) == 402


class Stopped:
    """Stands for `os` where the standard input ends when it is told to."""

    def __init__(self) -> None:
        self.told, self.gone = threading.Event(), threading.Event()
        self.codes: list[int] = []

    def read(self, file: int, count: int) -> bytes:
        assert self.told.wait(60)
        return b""

    def _exit(self, code: int) -> None:
        self.codes.append(code)
        self.gone.set()


def test_what_it_has_seen_by_then_is_kept(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, opened, real = Stopped(), [], ROOM.open_photo

    def open_photo(data: bytes) -> object:
        opened.append(data)
        if len(opened) >= 10:
            stopped.told.set()
            time.sleep(0.05)
        return real(data)

    monkeypatch.setattr(ahead, "os", stopped)
    monkeypatch.setattr(ROOM, "open_photo", open_photo)
    ahead._look(str(make_folder({"a": 400, "b": 2})))
    (cache,) = (cache_folder() / "examined").iterdir()
    assert 0 < len(json.loads(cache.read_text())["photos"]) < 300
    assert not stopped.codes


@pytest.mark.parametrize("busy", ["scan", "near_duplicates"])
def test_no_one_waits_for_what_would_not_be_kept(make_folder: Make, monkeypatch: pytest.MonkeyPatch, busy: str) -> None:
    """A folder on a slow drive, or a long search."""
    stopped, real = Stopped(), scan

    def slow(*_: object) -> Any:
        stopped.told.set()
        assert stopped.gone.wait(60)  # there the process has ended
        return real(folder)

    folder = make_folder({"a": 4, "b": 2})
    monkeypatch.setattr(ahead, "os", stopped)
    monkeypatch.setattr(ahead if busy == "scan" else Findings, busy, slow)
    ahead._look(str(folder))
    assert stopped.codes == [0]


def test_modules_that_lie_in_the_current_folder_are_not_run(
    make_folder: Make, begun: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("open('run', 'w')")
    monkeypatch.chdir(tmp_path)
    with looking_ahead(make_folder({"a": 2})):
        begun[0].wait(60)
    assert not (tmp_path / "run").exists() and (cache_folder() / "examined").exists()


@pytest.mark.parametrize("what", ["nothing there", "one core", "no second process"])
def test_where_there_is_no_other_process_nothing_is_lost(
    make_folder: Make, begun: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = make_folder({"a": 2})
    if what == "one core":
        monkeypatch.setattr(cores, "available", lambda: 1)
    if what == "no second process":
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: (_ for _ in ()).throw(OSError("no more")))
    with looking_ahead(folder / "gone" if what == "nothing there" else folder):
        pass
    assert not begun and not (cache_folder() / "examined").exists()


def test_a_folder_without_photos(tmp_path: Path, begun: list[subprocess.Popen[bytes]]) -> None:
    with looking_ahead(tmp_path):
        begun[0].wait(60)
    assert begun[0].returncode == 0  # what is wrong is told by who looks next
