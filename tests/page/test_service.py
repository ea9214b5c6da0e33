"""The page of `handlens serve`, in a headless Chromium: the same page, with the service as its engine."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
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


@pytest.fixture
def colours(tiny: ModuleType, tmp_path: Path) -> Path:
    """A bundle of its own for each test."""
    bundle.write(tmp_path / "colours.zip", tiny.bundle())
    return tmp_path / "colours.zip"


@pytest.fixture
def photo(tiny: ModuleType, tiny_photos: Path) -> Path:
    """A photo of the first class."""
    return next((tiny_photos / tiny.CLASSES[0]).glob("*.jpg"))


def answered(page: Any, url: str, photo: Path) -> None:
    """Open the page, and wait for its answer to the photo."""
    page.goto(url)
    page.locator("#files").set_input_files(photo)
    page.locator("#rows tr").wait_for()


@pytest.mark.slow
def test_photos_are_answered_and_corrected_by_the_service(
    chromium: Any, tiny: ModuleType, colours: Path, photo: Path, tmp_path: Path
) -> None:
    browser = chromium()
    with service(colours, "--keep", str(tmp_path / "kept"), HANDLENS_API_KEY=KEY) as url:
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
    chromium: Any, tiny: ModuleType, colours: Path, photo: Path
) -> None:
    browser = chromium()
    with service(colours) as url:
        page = browser.new_context(locale="en").new_page()
        answered(page, url, photo)
        with page.expect_download() as downloaded:
            page.get_by_label(f"Right class of {photo.name}").select_option(tiny.CLASSES[1])
        assert downloaded.value.suggested_filename == f"{tiny.CLASSES[1]}--{photo.name}"
        page.locator("#said", has_text="It is downloaded instead.").wait_for()
        page.get_by_label(f"Right class of {photo.name}").select_option("")
        page.wait_for_timeout(1500)  # longer than the page waits for another choice
        assert "It is downloaded instead." in page.locator("#said").inner_text()  # there is nothing to take back
        with page.expect_download():
            page.get_by_label(f"Right class of {photo.name}").select_option(tiny.CLASSES[1])
    browser.close()


@pytest.mark.slow
def test_the_last_class_that_is_named_is_the_one_that_is_kept(
    chromium: Any, tiny: ModuleType, colours: Path, photo: Path, tmp_path: Path
) -> None:
    """By the arrow keys a reader passes by other classes, which some browsers tell of one by one."""
    kept = tmp_path / "kept"
    browser = chromium()
    with service(colours, "--keep", str(kept)) as url:
        page = browser.new_context(locale="en").new_page()
        answered(page, url, photo)
        right = page.get_by_label(f"Right class of {photo.name}")
        for name in (tiny.CLASSES[2], tiny.CLASSES[0], tiny.CLASSES[1]):
            right.select_option(name)
        page.locator("#said", has_text=f"saved as {tiny.CLASSES[1]}").wait_for()
        assert [path.parent.name for path in kept.glob("*/*")] == [tiny.CLASSES[1]]
        right.select_option(tiny.CLASSES[2])
        page.locator("#said", has_text=f"saved as {tiny.CLASSES[2]}").wait_for()
        assert [path.parent.name for path in kept.glob("*/*")] == [tiny.CLASSES[2]]
        right.select_option("")
        page.locator("#said", has_text="is no longer kept").wait_for()
        assert list(kept.glob("*/*")) == []
    browser.close()


@pytest.mark.slow
def test_a_correction_that_failed_is_made_when_it_is_asked_for_again(
    chromium: Any, tiny: ModuleType, colours: Path, photo: Path, tmp_path: Path
) -> None:
    """Until then the service keeps what it kept, and a reader who goes on is not asked to save the photo again."""
    kept = tmp_path / "kept"
    browser = chromium()
    with service(colours, "--keep", str(kept)) as url:
        page = browser.new_context(locale="en").new_page()
        answered(page, url, photo)
        right = page.get_by_label(f"Right class of {photo.name}")
        right.focus()
        right.select_option(tiny.CLASSES[1])
        page.locator("#said", has_text=f"saved as {tiny.CLASSES[1]}").wait_for()
        full = {"status": 503, "json": {"error": "it is full", "hint": ""}}
        page.route("**/v1/corrections**", lambda route: route.fulfill(**full), times=1)
        with page.expect_download():
            right.select_option(tiny.CLASSES[2])
        page.locator("#said", has_text="has much to do. Try again in a moment. It is downloaded instead.").wait_for()
        right.blur()
        page.wait_for_timeout(1500)  # longer than the page waits for another choice
        assert [path.parent.name for path in kept.glob("*/*")] == [tiny.CLASSES[1]]
        right.select_option(tiny.CLASSES[0])
        right.select_option(tiny.CLASSES[2])
        page.locator("#said", has_text=f"saved as {tiny.CLASSES[2]}").wait_for()
        assert [path.parent.name for path in kept.glob("*/*")] == [tiny.CLASSES[2]]
    browser.close()


@pytest.mark.slow
def test_a_key_that_no_header_carries_is_asked_for_again(chromium: Any, colours: Path) -> None:
    browser = chromium()
    with service(colours, HANDLENS_API_KEY=KEY) as url:
        page = browser.new_context(locale="en").new_page()
        page.goto(url)
        field = page.get_by_label("This service wants its API key")
        field.fill(f"{KEY}\u200b")
        page.keyboard.press("Enter")
        page.locator("#said", has_text="A key is one word").wait_for()
        field.fill("another-key-of-many-letters")
        page.keyboard.press("Enter")
        page.locator("#trouble", has_text="That is not the key of this service. Copy it again.").wait_for()
        assert page.evaluate("document.activeElement.id") == "key"
        field.fill(KEY)
        page.keyboard.press("Enter")
        page.locator("#said", has_text="Ready.").wait_for()
        assert field.is_hidden() and page.evaluate("document.activeElement.id") == "files"
    browser.close()


def with_camera(browser: Any, url: str) -> Any:
    """The page with its camera running, and answers below it."""
    page = browser.new_context(locale="en", permissions=["camera"]).new_page()
    page.goto(url)
    page.locator("#camera").click()
    page.locator("#live-guesses li").first.wait_for()
    return page


@pytest.mark.slow
def test_a_key_that_no_longer_holds_is_asked_for_while_the_camera_runs(chromium: Any, colours: Path) -> None:
    browser = chromium("--use-fake-device-for-media-stream")
    with service(colours) as url:
        page = with_camera(browser, url)
        page.route("**/v1/predict**", lambda route: route.fulfill(status=401, json={"error": "no", "hint": ""}))
        page.locator("#said", has_text="This service wants its API key.").wait_for()
        assert page.locator("#key-form").is_visible()
        page.unroute("**/v1/predict**")
        page.get_by_label("This service wants its API key").fill(KEY)
        page.keyboard.press("Enter")
        page.locator("#key-form").wait_for(state="hidden")
    browser.close()


def refused(status: int, route: Any) -> None:
    route.fulfill(status=status, json={"error": "in English", "hint": "for programs"})


@pytest.mark.slow
def test_refusals_are_in_the_readers_language(chromium: Any, colours: Path, photo: Path, tmp_path: Path) -> None:
    browser = chromium()
    with service(colours) as url:
        page = browser.new_context(locale="zh-CN").new_page()
        page.goto(url)
        for number, (name, status, sentence) in enumerate(
            [
                ("notes.json", None, "服务无法把它当作照片读取"),
                ("notes.txt", None, "服务无法把它当作照片读取"),
                ("a.jpg", 413, "文件超过了服务的上限"),
                ("a.jpg", 503, "服务正忙"),
                ("a.jpg", 500, "HTTP 500"),
            ],
            1,
        ):
            (tmp_path / name).write_text('{"a": 1}')
            if status:
                refuse = functools.partial(refused, status)
                page.route("**/v1/predict**", refuse, times=1)
            page.locator("#files").set_input_files(tmp_path / name)
            page.locator(f"#rows tr:nth-child({number})").wait_for()
            said = page.locator("#said").inner_text()
            assert sentence in said and "English" not in said, said
        (tmp_path / "photo.json").write_bytes(photo.read_bytes())
        page.locator("#files").set_input_files(tmp_path / "photo.json")
        page.locator("#answer").wait_for()  # whatever its name says
    browser.close()


@pytest.mark.slow
def test_photos_that_come_after_a_start_that_failed_are_answered(chromium: Any, colours: Path, photo: Path) -> None:
    browser = chromium()
    with service(colours) as url:
        page = browser.new_context(locale="en").new_page()
        page.route("**/v1/model", lambda route: route.abort(), times=1)
        page.goto(url)
        page.locator("#trouble", has_text="The service cannot be reached.").wait_for()
        page.locator("#files").set_input_files([photo, photo])
        page.locator("#rows tr:nth-child(2)").wait_for()
        assert page.locator("#rows select").count() == 2
        assert page.locator("#trouble").is_hidden()
    browser.close()


@pytest.mark.slow
def test_a_photo_that_was_answered_stays_so_when_the_new_version_cannot_be_asked_for(
    chromium: Any, colours: Path, photo: Path
) -> None:
    browser = chromium()
    with service(colours) as url:
        page = browser.new_context(locale="en").new_page()
        page.goto(url)
        page.locator("#said", has_text="Ready.").wait_for()

        def newer(route: Any) -> None:
            response = route.fetch()
            route.fulfill(response=response, json={**response.json(), "version": "ffffffffffff"})

        page.route("**/v1/predict**", newer)
        page.route("**/v1/model", lambda route: route.abort(), times=1)
        page.locator("#files").set_input_files(photo)
        page.locator("#rows select").wait_for()
        assert page.locator("#said").inner_text().startswith(f"{photo.name}: ")
        assert "could not be answered" not in page.locator("#said").inner_text()
    browser.close()


@pytest.mark.slow
def test_a_camera_that_begins_slowly_can_be_stopped_and_is_asked_for_once(chromium: Any, colours: Path) -> None:
    browser = chromium("--use-fake-device-for-media-stream")
    with service(colours) as url:
        page = browser.new_context(locale="en", permissions=["camera"]).new_page()
        page.add_init_script("""
          globalThis.streams = [];
          const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
          navigator.mediaDevices.getUserMedia = async (what) => {
            await new Promise((resolve) => setTimeout(resolve, 300));
            const stream = await ask(what);
            streams.push(stream);
            return stream;
          };
          const play = HTMLMediaElement.prototype.play;
          HTMLMediaElement.prototype.play = async function () {
            await new Promise((resolve) => setTimeout(resolve, 800));
            return play.call(this);
          };
        """)
        page.goto(url)
        page.locator("#said", has_text="Ready.").wait_for()
        page.evaluate("for (let i = 0; i < 3; i++) document.getElementById('camera').click()")
        page.wait_for_timeout(700)  # it is there, and does not play yet
        if page.locator("#camera").is_visible():
            page.locator("#camera").click()
        page.locator("#stop").click()
        page.wait_for_timeout(1500)
        assert page.evaluate("streams.map((stream) => stream.active)") == [False]
        assert page.locator("#live").is_hidden()
    browser.close()


@pytest.mark.slow
def test_who_goes_by_keyboard_stays_at_the_button_when_there_is_no_camera(chromium: Any, colours: Path) -> None:
    browser = chromium()
    with service(colours) as url:
        page = browser.new_context(locale="en").new_page()
        page.goto(url)
        page.locator("#said", has_text="Ready.").wait_for()
        page.locator("#camera").focus()
        page.keyboard.press("Enter")
        page.locator("#said", has_text="No camera was found.").wait_for()
        assert page.evaluate("document.activeElement.id") == "camera"
    browser.close()


@pytest.mark.slow
def test_a_new_version_shows_on_an_open_page(
    chromium: Any, tiny: ModuleType, colours: Path, photo: Path, tmp_path: Path
) -> None:
    browser = chromium()
    with service(colours) as url:
        page = browser.new_context(locale="en").new_page()
        answered(page, url, photo)
        before = page.locator("#about").inner_text()
        bundle.write(tmp_path / "new.zip", dataclasses.replace(tiny.bundle(), card={"licence": "another"}))
        (tmp_path / "new.zip").replace(colours)
        for _ in range(100):
            if json.loads(urllib.request.urlopen(f"{url}v1/model").read())["card"] == {"licence": "another"}:
                break
            time.sleep(0.2)
        page.locator("#files").set_input_files(photo)
        page.locator("#rows tr:nth-child(2)").wait_for()
        assert page.locator("#about").inner_text() != before
        with page.expect_download() as downloaded:
            page.locator("#csv").click()
        text = Path(downloaded.value.path()).read_text("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert len({row["version"] for row in rows}) == 2
    browser.close()


@pytest.mark.slow
def test_a_camera_that_goes_away_is_told(chromium: Any, colours: Path) -> None:
    browser = chromium("--use-fake-device-for-media-stream")
    with service(colours) as url:
        page = with_camera(browser, url)
        page.evaluate("() => document.querySelector('video').srcObject.getTracks().forEach((track) => track.stop())")
        page.locator("#said", has_text="The camera has stopped").wait_for()
        assert page.locator("#live").is_hidden() and page.locator("#camera").is_visible()
        page.locator("#camera").click()
        page.locator("#live").wait_for()
    browser.close()


@pytest.mark.slow
def test_the_camera_answers_after_a_start_that_failed(chromium: Any, colours: Path) -> None:
    browser = chromium("--use-fake-device-for-media-stream")
    with service(colours) as url:
        page = browser.new_context(locale="en", permissions=["camera"]).new_page()
        page.route("**/v1/model", lambda route: route.abort(), times=1)
        page.goto(url)
        page.locator("#trouble", has_text="The service cannot be reached.").wait_for()
        page.locator("#camera").click()
        page.locator("#live-guesses li").first.wait_for()
        assert page.locator("h1").inner_text() == "colours"
        assert page.locator("#trouble").is_hidden()
    browser.close()
