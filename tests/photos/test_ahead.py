"""Another process looks at the photos, and stops when it is told to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handlens import cores
from handlens.files import cache_folder
from handlens.photos import examine, scan
from handlens.photos.ahead import looking_ahead

Make = Callable[..., Path]
ROOM = sys.modules["handlens.photos.examine"]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))


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


def test_it_stops_at_once_and_keeps_what_it_has_seen(make_folder: Make, begun: list[subprocess.Popen[bytes]]) -> None:
    folder = make_folder({"a": 400, "b": 2})
    with looking_ahead(folder):
        assert begun[0].poll() is None
    assert begun[0].returncode == 0
    seen = [len(json.loads(cache.read_text())["photos"]) for cache in (cache_folder() / "examined").glob("*")]
    assert sum(seen) < 402
    assert len(examine(scan(folder)).pixels) == 402


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
