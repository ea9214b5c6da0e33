"""Measure the exported sites of a run in a headless Chromium, beside Python on the same photos:

    handlens export RUN --to web --out SITE
    handlens export RUN --to web --int8 --out SITE_INT8
    python benchmarks/web.py RUN SITE SITE_INT8 --photos PHOTOS

Writes benchmarks/results/web.json. The photos are the run's test split; every figure is of this machine.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import functools
import http.server
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from playwright.sync_api import Browser, Page, sync_playwright

from handlens import checkpoint, files
from handlens.compress.job import own_splits
from handlens.cost.latency import processor
from handlens.export import web
from handlens.photos import Photos
from handlens.preprocess import Preprocess

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
COLD_LOADS = 7
TENSORS = 64
WAYS = {  # other ways to get a photo to the contract's size, all of them the browser's own code
    "our own resize": None,
    "canvas, low (its default)": "low",
    "canvas, medium": "medium",
    "canvas, high": "high",
    "createImageBitmap, high": "bitmap",
}
IN_PAGE = """async ([urls, way]) => {
  const { load, predict } = await import("./local.js");
  const { decode, fit, pixelsOf, shorterSideTo } = await import("./pixels.js");
  globalThis.ready ??= await load({ search: "?engine=wasm" });
  const { facts: { preprocess, classes }, run } = ready;
  const found = [];
  for (const url of urls) {
    const file = await (await fetch(url)).blob();
    if (way === null) {
      const { guesses } = await predict(ready, file);
      found.push(classes.map((name) => guesses.find((guess) => guess.name === name).probability));
      continue;
    }
    let bitmap = await decode(file);
    const [width, height] = shorterSideTo(bitmap.width, bitmap.height, preprocess.resize_px);
    if (way === "bitmap") {
      const size = { resizeWidth: width, resizeHeight: height, resizeQuality: "high" };
      bitmap = await createImageBitmap(file, { ...size, colorSpaceConversion: "none" });
    }
    const context = new OffscreenCanvas(width, height).getContext("2d");
    if (way !== "bitmap") context.imageSmoothingQuality = way;
    context.drawImage(bitmap, 0, 0, width, height);
    const pixels = fit(context.getImageData(0, 0, width, height).data, width, height, preprocess); // only the crop
    found.push(Array.from((await run(pixels)).probabilities));
  }
  return found;
}"""
OF_TENSORS = """async (tensors) => {
  const { load } = await import("./local.js");
  const { run } = await load({ search: "?engine=wasm" });
  const found = [];
  for (const one of tensors) {
    const { probabilities } = await run(Uint8Array.from(atob(one), (c) => c.charCodeAt(0)));
    found.push(Array.from(probabilities));
  }
  return found;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("site", type=Path)
    parser.add_argument("site_int8", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/web.json")
    given = parser.parse_args()
    test = own_splits(given.run, checkpoint.load(given.run), given.photos)[0]["test"]
    with sync_playwright() as playwright:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        result = {
            "command": "python benchmarks/web.py RUN SITE SITE_INT8 --photos PHOTOS",
            "run": given.run.name,
            "photos": len(test),
            "float32": of_site(browser, given.site, test),
            "int8": of_site(browser, given.site_int8, test, ways={"our own resize": None}),
            "browser": f"Chromium {browser.version}",
            "onnxruntime-web": web.VERSION,
            "processor": processor(),
            "cores": os.cpu_count(),
            "date": datetime.date.today().isoformat(),
            "commit": subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
            ).stdout.strip(),
        }
        browser.close()
    files.write_json(given.out, result)
    print(json.dumps(result, indent=2))


def of_site(browser: Browser, site: Path, test: Photos, ways: dict[str, Any] = WAYS) -> dict[str, Any]:
    """Sizes, cold loads, and the answers to all test photos beside Python's."""
    facts = json.loads((site / "site.json").read_text("utf-8"))
    contract = Preprocess.from_dict(facts["preprocess"])
    session = onnxruntime.InferenceSession(site / "model.onnx", providers=["CPUExecutionProvider"])
    tensors = [contract.load(test.path(index)) for index in range(len(test))]
    expected = np.concatenate([session.run(["probabilities"], {"photos": one[None]})[0] for one in tensors])
    page_bytes = sum(path.stat().st_size for path in site.iterdir() if path.is_file() and path.suffix != ".onnx")
    runtime_bytes = sum((site / facts["engines"][-1][name]).stat().st_size for name in ("script", "wasm"))
    with served(site, test.root) as url:
        cold = [cold_load(browser, url, test.path(0)) for _ in range(COLD_LOADS)]
        page = opened(browser, url)
        encoded = [base64.b64encode(one.tobytes()).decode() for one in tensors[:TENSORS]]
        of_tensors = np.array(page.evaluate(OF_TENSORS, encoded))
        urls = [f"/photos/{path}" for path in test.paths]
        answers = {name: np.array(page.evaluate(IN_PAGE, [urls, way])) for name, way in ways.items()}
        page.context.close()
    return {
        "page_bytes": page_bytes,
        "model_bytes": (site / "model.onnx").stat().st_size,
        "runtime_bytes_wasm": runtime_bytes,
        "cold_load_to_first_answer_s": {
            "median": round(statistics.median(cold), 3),
            "all": [round(value, 3) for value in cold],
        },
        "same_tensors": {
            "number": TENSORS,
            "greatest_difference": float(np.abs(of_tensors - expected[:TENSORS]).max()),
        },
        "top1_python": float((expected.argmax(1) == test.labels).mean()),
        "from_file_to_answer": {
            name: {
                "same_top1": float((got.argmax(1) == expected.argmax(1)).mean()),
                "top1": float((got.argmax(1) == test.labels).mean()),
                "greatest_difference": float(np.abs(got - expected).max()),
                "mean_difference": float(np.abs(got - expected).mean()),
            }
            for name, got in answers.items()
        },
    }


def opened(browser: Browser, url: str) -> Page:
    page = browser.new_context(locale="en").new_page()
    page.goto(url)
    page.locator("#said", has_text="Ready").wait_for()
    page.locator("#offline", has_text="offline").wait_for(timeout=60_000)
    return page


def cold_load(browser: Browser, url: str, photo: Path) -> float:
    """Seconds from opening the page, with nothing cached, to the answer on the screen for a photo given at once."""
    context = browser.new_context(locale="en")
    page = context.new_page()
    begun = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.locator("#files").set_input_files(photo)
    page.locator("#verdict:not(:empty)").wait_for()
    seconds = time.perf_counter() - begun
    context.close()
    return seconds


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def served(site: Path, photos: Path) -> Iterator[str]:
    """The address of a site, on loopback, with the photos beside it."""
    with tempfile.TemporaryDirectory() as root:
        Path(root, "site").symlink_to(site.resolve())
        Path(root, "photos").symlink_to(Path(photos).resolve())
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/site/"
        finally:
            server.shutdown()


if __name__ == "__main__":
    main()
