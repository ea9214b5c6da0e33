"""The page as people use it, in a headless Chromium: by file, paste and camera, by keyboard, on a phone, offline."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlens.preprocess import Preprocess, open_photo

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
READY_MS = 30_000


def opened(browser: Any, url: str, **options: Any) -> Any:
    """A page that is ready, which notes in `page.trouble` what it should not do: errors, and requests to elsewhere."""
    page = browser.new_context(**{"locale": "en-GB", **options}).new_page()
    page.set_default_timeout(READY_MS)
    page.trouble = []
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    page.on("console", lambda note: note.type == "error" and page.trouble.append(note.text))
    home = url.split("/")[2]
    page.on(
        "request",
        lambda r: home not in r.url and not r.url.startswith(("blob:", "data:")) and page.trouble.append(r.url),
    )
    page.goto(url)
    ready(page)
    return page


def ready(page: Any) -> None:
    page.locator("#said", has_text="Ready. ").or_(page.locator("#said", has_text="准备好了")).wait_for()


def answer(page: Any, rows: int) -> str:
    """The newest answer, when there are so many in the table."""
    page.locator(f"#rows tr:nth-child({rows})").wait_for()
    return str(page.locator("#verdict").inner_text())


def serious(page: Any) -> list[str]:
    """What axe finds wrong with the page as it is."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


def test_a_photo_is_answered_in_the_browser_alone(
    chromium: Any, serve: Any, tiny_site: Path, tiny_photos: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    browser = chromium()
    page = opened(browser, serve(tiny_site).url, locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh"
    page.locator("#language").click()
    assert page.locator("#said").inner_text() == "Ready. Give it a photo."
    photos = [next((tiny_photos / name).glob("*.jpg")) for name in tiny.CLASSES]
    for number, (name, photo) in enumerate(zip(tiny.CLASSES, photos, strict=True), 1):
        page.locator("#files").set_input_files(photo)
        assert answer(page, number) == name
        assert f"{photo.name}: {name}, " in page.locator("#said").inner_text()
    broken = tmp_path / "=broken.jpg"
    broken.write_bytes(b"no photo")
    page.locator("#files").set_input_files(broken)
    answer(page, 4)
    assert "cannot read it as a photo" in page.locator("#said").inner_text()
    with page.expect_download() as downloaded:
        page.get_by_label(f"Right class of {photos[0].name}").last.select_option(tiny.CLASSES[1])
    assert downloaded.value.suggested_filename == f"{tiny.CLASSES[1]}--{photos[0].name}"
    assert Path(downloaded.value.path()).read_bytes() == photos[0].read_bytes()
    with page.expect_download() as downloaded:
        page.locator("#csv").click()
    table = list(csv.DictReader(Path(downloaded.value.path()).read_text("utf-8-sig").splitlines()))
    assert [row["answer"] for row in table] == [*tiny.CLASSES, ""]
    assert table[0]["right_class"] == tiny.CLASSES[1] and table[3]["photo"] == "'=broken.jpg"
    assert serious(page) == []
    assert page.trouble == []
    browser.close()


# ---- a trained network -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tulip(shared: Path) -> Path:
    return sorted((shared / "data/flower_photos/tulips").glob("*.jpg"))[0]


@pytest.fixture(scope="module")
def browser(chromium: Any, tulip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """With a camera that sees a tulip."""
    film = tmp_path_factory.mktemp("camera") / "tulip.mjpeg"
    with Image.open(tulip) as photo:
        photo.convert("RGB").resize((640, 480)).save(film, "JPEG", quality=90)
    film.write_bytes(film.read_bytes() * 4)
    made = chromium("--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={film}")
    yield made
    made.close()


@pytest.mark.slow
def test_a_tulip_by_file_by_paste_by_drop_and_by_camera(
    browser: Any, serve: Any, flower_site: Path, tulip: Path, tmp_path: Path
) -> None:
    page = opened(browser, serve(flower_site).url, permissions=["clipboard-read", "clipboard-write", "camera"])
    assert serious(page) == []
    page.locator("#files").set_input_files(tulip)
    assert answer(page, 1) == "tulips"
    encoded = base64.b64encode(tulip.read_bytes()).decode()
    page.evaluate(
        """async (encoded) => {
          const file = new Blob([Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0))], { type: "image/jpeg" });
          const bitmap = await createImageBitmap(file);
          const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
          canvas.getContext("2d").drawImage(bitmap, 0, 0);
          const png = await canvas.convertToBlob({ type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
        }""",
        encoded,
    )
    page.keyboard.press("Control+V")
    assert answer(page, 2) == "tulips"
    assert page.locator("#rows tr").first.locator("th").inner_text() == "pasted photo"
    page.evaluate(
        """(encoded) => {
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
          data.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
          const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
          document.querySelector("h1").dispatchEvent(drop);
        }""",
        encoded,
    )
    assert answer(page, 3) == "tulips"
    page.screenshot(path=tmp_path / "desktop.png", full_page=True)
    page.locator("#camera").click()
    page.locator("#live-guesses li", has_text="tulips").first.wait_for()
    assert page.locator("#live-guesses li").first.inner_text().startswith("tulips")
    assert page.evaluate("document.activeElement.id") == "keep"
    page.keyboard.press("Enter")
    assert answer(page, 4) == "tulips"
    assert page.locator("#rows tr").first.locator("th").inner_text() == "camera 1"
    assert serious(page) == []
    page.screenshot(path=tmp_path / "camera.png")
    page.locator("#stop").click()
    assert page.evaluate("document.querySelector('video').srcObject") is None
    assert page.trouble == []
    page.context.close()


@pytest.mark.slow
def test_offline_after_the_first_visit_with_threads(browser: Any, serve: Any, flower_site: Path, tulip: Path) -> None:
    server = serve(flower_site)
    page = opened(browser, server.url)
    page.locator("#offline", has_text="offline").wait_for()
    server.kill()
    page.reload()
    ready(page)
    page.locator("#files").set_input_files(tulip)
    assert answer(page, 1) == "tulips"
    assert page.evaluate("crossOriginIsolated")
    elsewhere = page.context.new_page()
    elsewhere.goto(f"{server.url}#answer")
    ready(elsewhere)
    assert page.trouble == []
    page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_in_chinese(
    browser: Any, serve: Any, flower_site: Path, tulip: Path, tmp_path: Path, scheme: str
) -> None:
    page = opened(browser, serve(flower_site).url, **PHONE, locale="zh-CN", color_scheme=scheme)
    page.locator("#files").set_input_files(tulip)
    assert answer(page, 1) == "tulips"
    assert page.get_by_role("heading", name="答案").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert serious(page) == []
    page.screenshot(path=tmp_path / f"phone-{scheme}.png", full_page=True)
    page.context.close()


@pytest.mark.slow
def test_by_keyboard_alone(browser: Any, serve: Any, flower_site: Path, tulip: Path) -> None:
    page = opened(browser, serve(flower_site).url)
    page.keyboard.press("Tab")
    seen = [page.evaluate("document.activeElement.id")]
    page.keyboard.press("Tab")
    seen.append(page.evaluate("document.activeElement.id"))
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(tulip)
    assert answer(page, 1) == "tulips"
    for _ in range(4):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
    assert seen == ["language", "files", "camera", "scroll", "SELECT", "csv"]
    page.context.close()


@pytest.mark.slow
def test_no_camera_no_webassembly_and_a_damaged_model_get_a_sentence(
    chromium: Any, serve: Any, tiny_site: Path, tmp_path: Path
) -> None:
    import shutil

    browser = chromium()
    page = opened(browser, serve(tiny_site).url)
    page.locator("#camera").click()
    page.locator("#said", has_text="No camera was found. Connect one, or choose a photo.").wait_for()
    page = browser.new_context(locale="en").new_page()
    page.add_init_script("delete window.WebAssembly")
    page.goto(serve(tiny_site).url)
    page.locator("#trouble", has_text="This browser has no WebAssembly. Use a current").wait_for()
    shutil.copytree(tiny_site, tmp_path / "damaged")
    model = tmp_path / "damaged/model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    page = browser.new_context(locale="en").new_page()
    page.goto(serve(tmp_path / "damaged").url)
    page.locator("#trouble", has_text="model.onnx is not the file this page was made with").wait_for()
    for lacking in ("worker.js", "pixels.js"):
        shutil.copytree(tiny_site, tmp_path / lacking)
        (tmp_path / lacking / lacking).unlink()
        page = browser.new_context(locale="en").new_page()
        page.goto(serve(tmp_path / lacking).url)
        page.locator("#trouble", has_text=f"{lacking} could not be loaded. Check the connection").wait_for()
    page = browser.new_context(locale="en").new_page()
    page.goto(serve(tiny_site).url + "?engine=abacus")
    page.locator("#trouble", has_text="cannot compute by abacus here. Open it without ?engine").wait_for()
    browser.close()


@pytest.mark.slow
def test_who_listens_is_told_now_and_then_how_much_has_come(chromium: Any, serve: Any, tiny_site: Path) -> None:
    browser = chromium()
    page = browser.new_context(locale="en").new_page()
    page.add_init_script("""addEventListener("DOMContentLoaded", () => {
      globalThis.heard = [];
      const note = () => heard.push(document.getElementById("said").textContent);
      new MutationObserver(note).observe(document.getElementById("said"), { childList: true });
    })""")
    page.route("**/worker.js", lambda route: route.fulfill(content_type="text/javascript", body="""
      onmessage = async ({ data: { id } }) => {
        for (let i = 1; i <= 250; i++) {
          postMessage({ progress: [i * 1e5, 25e6] });
          await new Promise((resolve) => setTimeout(resolve, 10));
        }
        postMessage({ id, trouble: { key: "noFile", values: { file: "a" } } });
      };
    """))  # fmt: skip
    page.goto(serve(tiny_site).url)
    page.locator("#trouble", has_text="could not be loaded").wait_for()
    heard = page.evaluate("heard.filter((sentence) => sentence.includes('of 25.0 MB'))")
    assert 2 <= len(heard) <= 4, heard
    browser.close()


@pytest.mark.parametrize("kind", ["lossless", "lossy"])
def test_a_webp_that_lies_on_its_side_is_turned(chromium: Any, serve: Any, tiny_site: Path, kind: str) -> None:
    photo = Image.effect_mandelbrot((33, 20), (-2, -1, 1, 1), 50).convert("RGB")
    photo.paste((250, 20, 20), (0, 0, 12, 6))
    browser = chromium()
    page = opened(browser, serve(tiny_site).url)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        photo.save(file, "WEBP", lossless=kind == "lossless", quality=90, exif=exif)
        found = page.evaluate(
            """async (encoded) => {
              const { decode, pixelsOf } = await import("./pixels.js");
              const bitmap = await decode(new Blob([Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0))]));
              return [bitmap.height, bitmap.width, Array.from(pixelsOf(bitmap))];
            }""",
            base64.b64encode(file.getvalue()).decode(),
        )
        expected = np.asarray(open_photo(file.getvalue()))
        assert found[:2] == list(expected.shape[:2]), orientation
        pixels = np.reshape(found[2], (*expected.shape[:2], 4))[..., :3]
        assert np.abs(pixels - expected.astype(int)).max() <= (0 if kind == "lossless" else 2), orientation
    browser.close()


@pytest.mark.slow
def test_the_same_numbers_from_the_same_tensors(browser: Any, serve: Any, flower_site: Path, tmp_path: Path) -> None:
    import onnxruntime

    facts = json.loads((flower_site / "site.json").read_text("utf-8"))
    px = Preprocess.from_dict(facts["preprocess"]).image_px
    tensors = np.random.default_rng(0).integers(0, 256, (8, px, px, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(flower_site / "model.onnx", providers=["CPUExecutionProvider"])
    expected = np.concatenate([session.run(["probabilities"], {"photos": one[None]})[0] for one in tensors])
    page = opened(browser, serve(flower_site).url)
    got = page.evaluate(
        """async (tensors) => {
          const { load } = await import("./local.js");
          const { run } = await load();
          const answers = [];
          for (const one of tensors) {
            const pixels = Uint8Array.from(atob(one), (c) => c.charCodeAt(0));
            answers.push(Array.from((await run(pixels)).probabilities));
          }
          return answers;
        }""",
        [base64.b64encode(one.tobytes()).decode() for one in tensors],
    )
    assert np.abs(np.array(got) - expected).max() < 1e-3
    page.context.close()


def test_a_site_that_was_made_anew_is_told_of_and_taken(
    chromium: Any, serve: Any, tiny_site: Path, tiny: ModuleType, tiny_photos: Path, ort: Path, tmp_path: Path
) -> None:
    from handlens.export import web

    site = tmp_path / "site"
    web.write(site, tiny.bundle(), "colours", ort)
    photo = next((tiny_photos / tiny.CLASSES[0]).glob("*.jpg"))
    browser = chromium()
    page = opened(browser, serve(site).url)
    page.locator("#offline", has_text="Ready to be used offline").wait_for()
    shutil.rmtree(site)
    turned = dataclasses.replace(tiny.bundle(), card={"licence": "another"})
    web.write(site, turned, "colours of another day", ort)
    page.reload()
    ready(page)
    page.locator("#offline", has_text="There is a newer version").wait_for()
    assert page.locator("h1").inner_text() == "colours"  # still whole, and the old one
    page.locator("#files").set_input_files(photo)
    assert answer(page, 1) == tiny.CLASSES[0]
    context, url = page.context, page.url
    page.close()
    page = context.new_page()
    page.goto(url)
    page.locator("h1", has_text="colours of another day").wait_for()
    browser.close()
