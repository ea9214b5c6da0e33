"""The bundles that are served: proven before, and replaced while requests run."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from handlens import bundle
from handlens.bundle import Golden
from handlens.errors import HandlensError
from handlens.serve.models import Models, load

JPEG = {"Content-Type": "image/jpeg"}


def wrong_about_the_second(tiny: ModuleType) -> bundle.Bundle:
    golden = [tiny.golden(index) for index in range(3)]
    golden[1] = Golden(photo=golden[1].photo, probabilities=golden[2].probabilities)
    return tiny.bundle(golden=tuple(golden))


def test_one_that_fails_its_golden_photos_is_not_served(tiny: ModuleType, tmp_path: Path) -> None:
    bundle.write(tmp_path / "b.zip", wrong_about_the_second(tiny))
    with pytest.raises(HandlensError, match=r"1 of its 3 golden photos .*golden/1\.jpg") as error:
        load("b", tmp_path / "b.zip", 1)
    assert "golden/0.jpg" not in str(error.value)


def test_a_run_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match=r"is no bundle; make one with `handlens export"):
        load("b", tmp_path, 1)
    with pytest.raises(HandlensError, match="does not exist"):
        load("b", tmp_path / "none.zip", 1)


def test_a_version_is_of_the_content(tiny: ModuleType, tmp_path: Path) -> None:
    for name, card in (("a.zip", {"n": 1}), ("folder", {"n": 1}), ("c.zip", {"n": 2})):
        bundle.write(tmp_path / name, tiny.bundle(card=card))
    versions = [load("b", tmp_path / name, 1).version for name in ("a.zip", "folder", "c.zip")]
    assert versions[0] == versions[1] != versions[2]


def replace(path: Path, new: Path) -> None:
    shutil.copy(new, path.with_suffix(".new"))
    os.utime(path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_new_version_is_swapped_in_and_no_request_is_lost(
    serving: Callable[..., Any], tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served, newer, bad = (tmp_path / name for name in ("served.zip", "newer.zip", "bad.zip"))
    bundle.write(served, tiny.bundle())
    bundle.write(newer, tiny.bundle(card={"newer": True}))
    bundle.write(bad, wrong_about_the_second(tiny))
    seen: list[tuple[int, str]] = []
    stop = threading.Event()
    with serving(bundles={"m": served}, poll_s=0.05) as client:

        def ask() -> None:
            while not stop.is_set():
                answer = client.post("/v1/predict", content=tiny.photo(0), headers=JPEG)
                seen.append((answer.status_code, answer.json().get("version", "")))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            first = client.get("/v1/model").json()["version"]
            until(lambda: len(seen) > 10)
            replace(served, newer)
            until(lambda: client.get("/v1/model").json()["card"] == {"newer": True})
            second = client.get("/v1/model").json()["version"]
            until(lambda: seen[-1][1] == second)
            replace(served, bad)
            until(lambda: "a new version is not served" in caplog.text)
            served.unlink()
            before = len(seen)
            until(lambda: len(seen) > before + 20)
            assert client.get("/v1/model").json()["version"] == second
            metrics = client.get("/metrics").text
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert {status for status, _ in seen} == {200}
    assert {version for _, version in seen} == {first, second}
    assert f'version="{second}"' in metrics and f'version="{first}"' not in metrics


def test_a_file_that_is_still_being_written_is_left_alone(tiny: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    bundle.write(path, tiny.bundle())
    whole = path.read_bytes()
    models = Models({"b": path}, 1)
    models.begin(lambda model: None)  # type: ignore[arg-type, return-value]
    tried: list[Path] = []

    async def scenario() -> None:
        from handlens.serve import models as room

        def noted(name: str, path: Path, threads: int) -> Any:
            tried.append(path)
            return load(name, path, threads)

        room.load, kept = noted, room.load
        try:
            watching = asyncio.create_task(models.watch(0.2))
            for length in range(8):  # grows in 0.8 seconds, between all looks
                path.write_bytes(whole[: 100 + length])
                await asyncio.sleep(0.1)
            assert not tried
            path.write_bytes(whole)
            for _ in range(100):
                await asyncio.sleep(0.05)
                if tried:
                    break
            watching.cancel()
        finally:
            room.load = kept

    asyncio.run(scenario())
    assert tried == [path]
