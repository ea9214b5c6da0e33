"""The page of `handlens serve`, in a headless Chromium: the same page, with the service as its engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from handlens import bundle

KEY = "a-key-of-sixteen-characters"


@contextmanager
def service(path: Path, *options: str, **environment: str) -> Iterator[str]:
    """The address of `handlens serve`, as people start it."""
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    command = [sys.executable, "-m", "handlens", "serve", str(path), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout
        found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert found
        yield found[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_photos_are_answered_and_corrected_by_the_service(
    chromium: Any, tiny: ModuleType, tiny_photos: Path, tmp_path: Path
) -> None:
    bundle.write(tmp_path / "colours.zip", tiny.bundle())
    photo = next((tiny_photos / tiny.CLASSES[0]).glob("*.jpg"))
    browser = chromium()
    with service(tmp_path / "colours.zip", "--keep", str(tmp_path / "kept"), HANDLENS_API_KEY=KEY) as url:
        page = browser.new_context(locale="en").new_page()
        trouble: list[str] = []
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: url in request.url or trouble.append(request.url))
        page.goto(url)
        page.get_by_label("This service wants its API key").fill(KEY)
        page.keyboard.press("Enter")
        page.locator("#said", has_text="Ready. Give it a photo.").wait_for()
        assert page.locator("h1").inner_text() == "colours"
        page.locator("#files").set_input_files(photo)
        page.locator("#rows tr").wait_for()
        assert page.locator("#verdict").inner_text() == tiny.CLASSES[0]
        assert "Photos are sent to 127.0.0.1" in page.locator("#where").inner_text()
        page.get_by_label(f"Right class of {photo.name}").select_option(tiny.CLASSES[1])
        page.locator("#said", has_text=f"saved as {tiny.CLASSES[1]} for the next training").wait_for()
        assert len(list((tmp_path / "kept" / tiny.CLASSES[1]).glob("*.jpg"))) == 1
        assert [one for one in trouble if not one.startswith("blob:")] == []
    page.locator("#files").set_input_files(photo)
    page.locator("#said", has_text="The service cannot be reached.").wait_for()
    browser.close()


@pytest.mark.slow
def test_a_service_that_keeps_nothing_says_so_and_the_photo_is_downloaded(
    chromium: Any, tiny: ModuleType, tiny_photos: Path, tmp_path: Path
) -> None:
    bundle.write(tmp_path / "colours.zip", tiny.bundle())
    photo = next((tiny_photos / tiny.CLASSES[0]).glob("*.jpg"))
    browser = chromium()
    with service(tmp_path / "colours.zip") as url:
        page = browser.new_context(locale="en").new_page()
        page.goto(url)
        page.locator("#files").set_input_files(photo)
        page.locator("#rows tr").wait_for()
        with page.expect_download() as downloaded:
            page.get_by_label(f"Right class of {photo.name}").select_option(tiny.CLASSES[1])
        assert downloaded.value.suggested_filename == f"{tiny.CLASSES[1]}--{photo.name}"
        page.locator("#said", has_text="It is downloaded instead.").wait_for()
    browser.close()
