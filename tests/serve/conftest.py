"""What the tests of the service share: tiny bundles, and a service in this process with or without a socket."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.testclient import TestClient

from handlens import bundle
from handlens.serve import Limits, Settings

Serving = Callable[..., contextlib.AbstractContextManager[TestClient]]
Listening = Callable[..., contextlib.AbstractContextManager[int]]


@pytest.fixture(scope="session")
def tiny_bundle(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for onnxruntime. Not to be changed."""
    path = tmp_path_factory.mktemp("served") / "tiny.zip"
    bundle.write(path, tiny.bundle())
    return path


def settings_of(path: Path, given: dict[str, Any]) -> Settings:
    limits = {name: given.pop(name) for name in list(given) if name in Limits.__dataclass_fields__}
    return Settings(**{"bundles": {"tiny": path}, "limits": Limits(**limits), "threads": 1, **given})


@pytest.fixture(scope="session")
def serving(tiny_bundle: Path) -> Serving:
    """A client of the service in this process, without a socket: `with serving(files=2) as client`."""
    from handlens.serve.app import create
    from handlens.serve.models import Models

    @contextlib.contextmanager
    def begin(**given: Any) -> Iterator[TestClient]:
        settings = settings_of(tiny_bundle, given)
        app = create(settings, Models(settings.bundles, settings.threads))
        with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
            yield client

    return begin


@pytest.fixture(scope="session")
def client(serving: Serving) -> Iterator[TestClient]:
    """Of a service with few and small photos."""
    with serving(files=3, body_bytes=200_000, pixels=100_000) as client:
        yield client


@pytest.fixture(scope="session")
def listening(tiny_bundle: Path) -> Listening:
    """The real server, in a thread: `with listening(time_s=0.5) as port`."""
    from handlens.serve import server

    @contextlib.contextmanager
    def begin(**given: Any) -> Iterator[int]:
        made, socket_ = server.make(settings_of(tiny_bundle, {"port": 0, **given}))
        port = socket_.getsockname()[1]
        began = threading.Event()
        made.listening = began.set  # type: ignore[attr-defined]
        thread = threading.Thread(target=made.run, kwargs={"sockets": [socket_]})
        thread.start()
        assert began.wait(20)
        try:
            yield port
        finally:
            made.should_exit = True
            thread.join(30)
            assert not thread.is_alive()

    return begin
