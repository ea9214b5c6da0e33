"""A headless Chromium, what it is given, and the sites that it opens."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import handlens
from handlens.errors import HandlensError

ROOT = Path(__file__).parents[2]
PAGE = Path(handlens.__file__).parent / "page"
RUN = ROOT / "benchmarks/runs/flowers_mobilenet_v3_small_scratch"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (  # no request but the page's own, and no sandbox: CI runs as root
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream"),
)


@pytest.fixture(scope="module")  # no longer: while Playwright runs, no other test can have an event loop here
def chromium() -> Iterator[Any]:
    """launch(*flags) -> a browser of its own; all are closed at the end."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if binary is None:
        pytest.skip("no Chromium is installed")
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(playwright.sync_playwright())
        yield lambda *flags: started.chromium.launch(executable_path=binary, args=[*FLAGS, *flags])


@pytest.fixture(scope="session")
def ort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of onnxruntime-web's files, from npm."""
    from handlens.export import web

    given = os.environ.get("HANDLENS_CACHE")
    os.environ["HANDLENS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    try:
        return web.runtime_files()
    except HandlensError as error:
        pytest.skip(str(error))
    finally:
        os.environ.pop("HANDLENS_CACHE") if given is None else os.environ.update(HANDLENS_CACHE=given)


@pytest.fixture(scope="session")
def tiny_site(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType, ort: Path) -> Path:
    """The site of a network that knows three colours."""
    from handlens.export import web

    return web.write(tmp_path_factory.mktemp("site") / "tiny", tiny.bundle(), "colours", ort).path


@pytest.fixture(scope="session")
def flower_site(tmp_path_factory: pytest.TempPathFactory, shared: Path, ort: Path) -> Path:
    """The site of a network trained on flower photos, by the command line and through its gate."""
    out = tmp_path_factory.mktemp("site") / "flowers"
    command = [sys.executable, "-m", "handlens", "export", str(RUN), "--to", "web", "--out", str(out)]
    more = ["--photos", str(shared / "data/flower_photos"), "--runtime-files", str(ort), "--threads", "1"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def node(tmp_path: Path) -> Callable[[str], str]:
    """node(script) -> what it prints; run in `tmp_path`, beside the page's modules."""
    binary = shutil.which("node")
    if binary is None:
        pytest.skip("node is not installed")
    for path in PAGE.glob("*.js"):
        shutil.copy(path, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')

    def run(script: str) -> str:
        (tmp_path / "script.js").write_text(script)
        command = [binary, "script.js"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


class Server:
    """`python -m http.server`: nothing of handlens, no headers of its own."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout
        found = re.search(r"http://127\.0\.0\.1:\d+/", self.process.stdout.readline())
        assert found
        self.url = found[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture
def serve() -> Iterator[Any]:
    """serve(folder) -> Server; all are killed at the end."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path) -> Server:
            server = Server(folder)
            stack.callback(server.kill)
            return server

        yield start
