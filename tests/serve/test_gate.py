"""What stands before every request and after it."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from handlens.serve import Limits, Settings
from handlens.serve.gate import Gate
from handlens.serve.metrics import Metrics


async def _never_full() -> None:
    pass


def test_a_request_without_an_end_is_cut_off() -> None:
    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    settings = Settings(bundles={"tiny": Path("tiny.zip")}, limits=Limits(time_s=0.1))
    begun = time.monotonic()
    answer = TestClient(Gate(hangs, settings, Metrics(), _never_full), "http://localhost").get("/healthz")
    assert (answer.status_code, answer.json()["error"]) == (408, "the request took too long")
    assert 0.2 < time.monotonic() - begun < 10


@pytest.mark.parametrize(("given", "taken"), [("a" * 64, True), ("a" * 65, False), ("", False)])
def test_an_id_of_a_request_has_up_to_64_letters(client: TestClient, given: str, taken: bool) -> None:
    assert (client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] == given) == taken


def test_addresses_that_there_are_not_fill_neither_log_nor_metrics(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "handlens.serve"):
        assert client.get("/" + "x" * 5000).status_code == 404
    (logged,) = (record for record in caplog.records if record.getMessage() == "request")
    assert logged.__dict__["path"] == "/" + "x" * 99
    metrics = client.get("/metrics").text
    assert "xxx" not in metrics and 'route="/{path:path}",status="404"' in metrics


def test_a_length_of_endless_digits(client: TestClient) -> None:
    """More than Python turns into a number."""
    answer = client.post("/v1/predict", content=b"x", headers={"Content-Length": "9" * 5000})
    assert (answer.status_code, answer.json()["error"]) == (413, "the request has more than 200,000 bytes")


def test_the_word_bearer_may_be_written_in_any_case(serving: Callable[..., Any]) -> None:
    key = "a-key-of-many-letters"
    with serving(api_key=key) as client:
        for word in ("bearer", "BEARER"):
            assert client.get("/v1/model", headers={"Authorization": f"{word} {key}"}).status_code == 200


def test_the_time_of_a_refusal_ends_with_its_answer(
    listening: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """And not with what the client sends all the same, which is waited for a while."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n"
    with (
        caplog.at_level(logging.INFO, "handlens.serve"),
        listening() as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
    ):
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
        time.sleep(0.6)
    (logged,) = (record for record in caplog.records if record.getMessage() == "request")
    assert logged.__dict__["status"] == 413 and logged.__dict__["ms"] < 300
