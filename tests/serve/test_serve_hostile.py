"""Requests made to break the service: each gets a status from 400 and one sentence, and costs little."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient
from uvicorn.server import ServerState

from handlens.serve import Limits, server
from handlens.serve.protocol import limited

JPEG = {"Content-Type": "image/jpeg"}
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="photos"; filename="a.jpg"\r\n\r\n'


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def bomb(px: int) -> bytes:
    """A PNG that says it is px x px, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", px, px, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


MANY_THINGS = b'{"photos": [' + b"{}," * 60_000 + b"{}]}"
MANY_VALUES = b'{"photos": [' + b"1," * 60_000 + b"1]}"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "empty": ({"content": b"", "headers": JPEG}, 400, "the request is empty"),
    "text": ({"content": b"hello", "headers": JPEG}, 422, "not a photo that can be read"),
    "text as text": ({"content": b"hello", "headers": {"Content-Type": "text/plain"}}, 415, "Content-Type"),
    "a form": ({"data": {"photos": "hello"}}, 415, "Content-Type"),
    "truncated": ({"content": jpeg()[:3000], "headers": JPEG}, 422, "the photo is damaged"),
    "bomb of 2 gigapixels": ({"content": bomb(45_000), "headers": JPEG}, 422, "too many pixels"),
    "too many pixels": ({"content": bomb(400), "headers": JPEG}, 422, "400 x 400 pixels, the limit is 0.1 million"),
    "svg": ({"content": SVG, "headers": {"Content-Type": "image/svg+xml"}}, 422, "not a photo that can be read"),
    "too long": ({"content": b"x" * 200_001, "headers": JPEG}, 413, "more than 200,000 bytes"),
    "too long in chunks": ({"content": iter([b"x" * 9000] * 30), "headers": JPEG}, 413, "more than 200,000 bytes"),
    "compressed": ({"content": b"x", "headers": {**JPEG, "Content-Encoding": "gzip"}}, 415, "compressed"),
    "multipart without end": ({"content": PART + b"x", "headers": FORM}, 400, "broken or cut off"),
    "multipart of nothing": ({"content": b"x", "headers": FORM}, 400, "broken"),
    "multipart without photos": ({"files": [("other", b"x")]}, 400, "holds no photo"),
    "multipart without boundary": (
        {"content": PART, "headers": {"Content-Type": "multipart/form-data"}}, 400, "broken",
    ),
    "multipart of endless headers": ({"content": PART[:-4] + b"x" * 100_000, "headers": FORM}, 400, "broken"),
    "many photos": ({"files": [("photos", b"x")] * 4}, 413, "more than 3 photos"),
    "many parts": ({"files": [("other", b"x")] * 40}, 413, "more than 3 photos"),
    "an empty photo": ({"files": [("photos", ("a.jpg", b""))]}, 422, "the photo is empty"),
    "no json": ({"content": b"{", "headers": JSON}, 400, "not JSON"),
    "deep json": ({"content": b"[" * 100_000, "headers": JSON}, 400, "not JSON"),
    "a long number": ({"content": b'{"top": ' + b"9" * 100_000 + b"}", "headers": JSON}, 400, "not JSON"),
    "json of something else": ({"json": {"photos": "x"}}, 400, "no list of photos"),
    "json of no photo": ({"json": {"photos": []}}, 400, "holds no photo"),
    "json of many": ({"json": {"photos": [""] * 4}}, 413, "more than 3 photos"),
    "json of many things": ({"content": MANY_THINGS, "headers": JSON}, 400, "not JSON with one list"),
    "json of many values": ({"content": MANY_VALUES, "headers": JSON}, 413, "more than 3 photos"),
    "no base64": ({"json": {"photos": ["é!"]}}, 400, "not base64"),
    "top in json": ({"json": {"photos": ["AAAA"], "top": 0}}, 400, "top is not as it must be"),
    "top of many digits": ({"json": {"photos": ["AAAA"], "top": "0000000019999"}}, 400, "top is not as it must be"),
    "top of endless digits": ({"json": {"photos": ["AAAA"], "top": "000000001" + 5000 * "0"}}, 400, "top is not as"),
    "top of another kind": ({"json": {"photos": ["AAAA"], "top": [1]}}, 400, "top must be a number"),
    "top in the address": ({"content": b"x", "headers": JPEG, "params": {"top": "many"}}, 400, "top is not as it must"),
    "from another site": ({"content": b"x", "headers": {**JPEG, "Sec-Fetch-Site": "cross-site"}}, 403, "another site"),
    "from a neighbour": ({"content": b"x", "headers": {**JPEG, "Sec-Fetch-Site": "same-site"}}, 403, "another site"),
    "from another origin": ({"content": b"x", "headers": {**JPEG, "Origin": "http://a.example"}}, 403, "another site"),
    "from no origin": ({"content": b"x", "headers": {**JPEG, "Origin": "null"}}, 403, "another site"),
}  # fmt: skip


def refused(answer: Any, status: int, sentence: str) -> None:
    found = answer.json()
    assert answer.status_code == status, found
    assert found.keys() == {"error", "hint"}
    assert sentence in found["error"]
    text = json.dumps(found)
    assert not any(word in text for word in ("Traceback", "/tmp", "site-packages", ".py", "0x", "_io."))
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_upload(client: TestClient, name: str) -> None:
    given, status, sentence = BAD[name]
    begun = time.perf_counter()
    answer = client.post("/v1/predict", **given)
    assert time.perf_counter() - begun < 2
    refused(answer, status, sentence)


@pytest.mark.parametrize(("body", "status"), [(MANY_THINGS, 400), (MANY_VALUES, 413), (b"[" * 100_000, 400)])
def test_json_of_millions_of_values_is_not_read(body: bytes, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory they would take thirty times what was sent."""
    from handlens.serve import Limits, uploads

    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("it was read"))
    with pytest.raises(uploads.RefusedError) as caught:
        uploads.parse(body, "application/json", Limits())
    assert caught.value.status == status


def test_after_all_that_it_answers_still(client: TestClient, tiny: ModuleType) -> None:
    for given, _, _ in BAD.values():
        client.post("/v1/predict", **given)
    assert client.post("/v1/predict", content=tiny.photo(0), headers=JPEG).status_code == 200
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/predict", 405), ("GET", "/v1/corrections", 405), ("POST", "/v1/model", 405), ("DELETE", "/", 405)],
)
def test_a_wrong_address_or_method(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json().keys() == {"error", "hint"}
    assert answer.headers["allow"] == ("GET" if method != "GET" else "POST")


def test_a_request_id_is_taken_if_it_is_one(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "a-1.b"}).headers["x-request-id"] == "a-1.b"
    given = 'x"}\n{"level": "forged'
    made = client.get("/healthz", headers={"X-Request-Id": given.replace("\n", " ")}).headers["x-request-id"]
    assert len(made) == 16 and made.isalnum()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1", "a.localhost"])
def test_on_its_own_machine_it_answers(client: TestClient, host: str) -> None:
    assert client.get("/v1/model", headers={"Host": host}).status_code == 200


def test_a_name_that_leads_here_is_not_this_machines(serving: Callable[..., Any]) -> None:
    """A page of another site, whose name its server moved to 127.0.0.1, is of the same origin to its browser."""
    for own in ("127.0.0.1", "localhost", "::1"):
        with serving(host=own) as client:
            for host in ("rebound.example:8000", "localhost.example", "127.0.0.1.example", "notlocalhost"):
                refused(client.get("/v1/model", headers={"Host": host}), 403, "on its own machine only")
    pem = {"tls_cert": Path("c.pem"), "tls_key": Path("k.pem")}
    for open_to_others in ({"host": "0.0.0.0"}, {"api_key": "a-key-of-many-letters"}, pem):
        with serving(**open_to_others) as client:
            headers = {"Host": "flowers.example", "X-API-Key": "a-key-of-many-letters"}
            assert client.get("/v1/model", headers=headers).status_code == 200


def test_an_api_key(serving: Callable[..., Any], tiny: ModuleType) -> None:
    key = "a-key-of-many-letters"
    with serving(api_key=key) as client:
        for wrong in ({}, {"X-API-Key": key[:-1]}, {"Authorization": f"Basic {key}"}, {"Authorization": "Bearer é"}):
            headers = {name: value.encode("latin-1") for name, value in wrong.items()}
            refused(client.get("/v1/model", headers=headers), 401, "wants its API key")
            assert client.get("/metrics", headers=headers).status_code == 401
        for right in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            assert client.post("/v1/predict", content=tiny.photo(0), headers={**JPEG, **right}).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_with_its_key_a_page_behind_a_proxy_is_let_in(serving: Callable[..., Any], tiny: ModuleType) -> None:
    """A proxy of plain HTTP may hand on another host than the page's, and browsers do not say there whose it is."""
    key = {"X-API-Key": "a-key-of-many-letters"}
    proxied = {**JPEG, "Origin": "http://pi.lan", "Host": "127.0.0.1:8000"}

    def ask(client: TestClient, **more: str) -> Any:
        return client.post("/v1/predict", content=tiny.photo(0), headers={**proxied, **more})

    with serving(api_key=key["X-API-Key"]) as client:
        assert ask(client, **key).status_code == 200
        refused(ask(client), 401, "wants its API key")
        refused(ask(client, **key, **{"Sec-Fetch-Site": "cross-site"}), 403, "another site")
    with serving() as client:
        refused(ask(client, **key), 403, "another site")


def test_a_bug_shows_nothing_of_the_host(
    serving: Callable[..., Any], tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from handlens.errors import HandlensError
    from handlens.serve import app

    for error in (RuntimeError("in /home/someone/secret.py"), HandlensError("/home/someone/b.zip cannot be run")):

        def broken(*given: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(app, "parse", broken)
        caplog.clear()
        with serving() as client:
            answer = client.post("/v1/predict", content=tiny.photo(0), headers=JPEG)
        refused(answer, 500, "the service")
        assert "someone" not in answer.text
        assert "someone" in caplog.text or any("someone" in str(vars(record)) for record in caplog.records)


def test_full_is_503_and_says_when_to_come_again(
    serving: Callable[..., Any], tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handlens.run import Classifier

    answers, go_on = Classifier.answers, threading.Event()

    def slow(self: Classifier, photos: np.ndarray, top: int) -> Any:
        assert go_on.wait(20)
        return answers(self, photos, top)

    go_on.set()
    monkeypatch.setattr(Classifier, "answers", slow)
    with serving(files=1, photos=1) as client, ThreadPoolExecutor(1) as thread:
        go_on.clear()
        first = thread.submit(client.post, "/v1/predict", content=tiny.photo(0), headers=JPEG)
        while client.get("/readyz").status_code == 200:
            assert not first.done()
        second = client.post("/v1/predict", content=tiny.photo(1), headers=JPEG)
        go_on.set()
        refused(second, 503, "waiting already")
        assert second.headers["retry-after"] == "1"
        assert first.result().status_code == 200
        assert client.post("/v1/predict", content=tiny.photo(1), headers=JPEG).status_code == 200


def test_work_that_takes_too_long(
    serving: Callable[..., Any], tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handlens.run import Classifier

    answers, pause_s = Classifier.answers, 0.0

    def slow(*given: Any) -> Any:
        time.sleep(pause_s)
        return answers(*given)

    monkeypatch.setattr(Classifier, "answers", slow)
    with serving(time_s=0.2) as client:
        pause_s = 0.6
        refused(client.post("/v1/predict", content=tiny.photo(0), headers=JPEG), 503, "within 0.2 seconds")
        pause_s = 0.0
        time.sleep(0.6)
        assert client.post("/v1/predict", content=tiny.photo(0), headers=JPEG).status_code == 200


def test_a_request_that_comes_when_it_is_full_costs_no_work(
    serving: Callable[..., Any], tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past its capacity a service answers as many photos as at it: what refusals cost would be lost to photos."""
    from handlens.serve import app

    full = property(lambda _: 1, lambda *_: None)
    monkeypatch.setattr(app.Service, "photos", full, raising=False)
    monkeypatch.setattr(app, "body_of", lambda *_: pytest.fail("its body was read"))
    with serving(files=1, photos=1) as client:
        begun = time.perf_counter()
        assert client.get("/readyz").status_code == 503
        assert time.perf_counter() - begun < app.REFUSED_AFTER_S  # whoever asks that is to know now
        for path in ("/v1/predict", "/v1/corrections?name=a"):
            begun = time.perf_counter()
            refused(client.post(path, content=tiny.photo(0), headers=JPEG), 503, "waiting already")
            assert time.perf_counter() - begun >= app.REFUSED_AFTER_S
        again = client.post("/v1/predict", content=tiny.photo(0), headers=JPEG)
        assert "connection" not in again.headers  # it is kept
        assert 'handlens_requests_total{route="/v1/predict",status="503"} 2.0' in client.get("/metrics").text


def test_photos_that_are_too_many_for_what_is_free_are_refused_a_while_later(
    serving: Callable[..., Any], tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handlens.serve import app

    monkeypatch.setattr(app.Service, "photos", property(lambda _: 1, lambda *_: None), raising=False)
    with serving(files=2, photos=2) as client:
        begun = time.perf_counter()
        answer = client.post("/v1/predict", files=[("photos", tiny.photo(0)), ("photos", tiny.photo(1))])
        refused(answer, 503, "waiting already")
        assert time.perf_counter() - begun >= app.REFUSED_AFTER_S


def test_the_more_are_refused_the_longer_each_is_kept_waiting(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handlens.serve import Settings, app

    waited: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    async def refuse() -> None:
        service = app.Service(Settings(bundles={"tiny": tiny_bundle}), None)  # type: ignore[arg-type]
        monkeypatch.setattr(asyncio, "sleep", noted)
        await asyncio.gather(*(service.keep_waiting() for _ in range(200)))
        assert service.refusing == 0

    asyncio.run(refuse())
    assert waited[0] == app.REFUSED_AFTER_S
    assert waited[-1] == 200 / app.REFUSALS_PER_S


# ---- on a real connection --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def port(listening: Callable[..., Any]) -> Iterator[int]:
    with listening(time_s=0.7, header_s=0.8, body_bytes=1_000_000, held_bytes=1_500_000) as port:
        yield port


def talk(port: int, *pieces: bytes, pause_s: float = 0.0, patience_s: float = 8.0) -> tuple[bytes, float]:
    """Send the pieces and read until the server closes: what it said, and after how many seconds it had."""
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as connection:
        said = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
        except OSError:
            pass  # it has closed already: what it said is there to be read
        try:
            while data := connection.recv(65536):
                said += data
        except ConnectionResetError:
            pass
    return said, time.perf_counter() - begun


def sentence_of(said: bytes) -> tuple[int, dict[str, str]]:
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head.lower()
    return int(head.split()[1]), json.loads(body)


def post(*headers: str) -> bytes:
    lines = ["POST /v1/predict HTTP/1.1", "Host: localhost", "Content-Type: image/jpeg", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_declared_length_of_10_gb(port: int) -> None:
    said, seconds = talk(port, post("Content-Length: 10000000000"))
    status, found = sentence_of(said)
    assert (status, found["error"]) == (413, "the request has more than 1,000,000 bytes")
    assert seconds < 4


def test_10_gb_that_are_sent_to_an_address_without_a_body(port: int) -> None:
    said, seconds = talk(
        port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n" + b"x" * 65536
    )
    assert sentence_of(said)[0] == 413
    assert seconds < 4


def test_a_body_that_comes_slowly(port: int) -> None:
    said, seconds = talk(port, post("Content-Length: 1000"), *[b"x"] * 5, pause_s=0.25)
    status, found = sentence_of(said)
    assert (status, found["error"]) == (408, "the photos did not arrive within 0.7 seconds")
    assert seconds < 5


def test_headers_that_come_slowly(port: int) -> None:
    said, seconds = talk(port, b"POST /v1/predict HTTP/1.1\r\n", *[b"X: y\r\n"] * 6, pause_s=0.2)
    status, found = sentence_of(said)
    assert (status, found["error"]) == (408, "the request's headers did not arrive within 0.8 seconds")
    assert seconds < 3


def test_a_connection_that_says_nothing(port: int) -> None:
    said, seconds = talk(port)
    assert sentence_of(said)[0] == 408
    assert seconds < 3


def test_chunks_without_end(port: int) -> None:
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    said, seconds = talk(port, post("Transfer-Encoding: chunked"), *[chunk] * 400)
    status, found = sentence_of(said)
    assert (status, found["error"]) == (413, "the request has more than 1,000,000 bytes")
    assert seconds < 6


@pytest.mark.parametrize("nonsense", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"])
def test_what_is_no_http(port: int, nonsense: bytes) -> None:
    assert sentence_of(talk(port, nonsense)[0])[0] == 400


def test_what_is_refused_before_it_is_a_request_is_in_the_log(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "handlens.serve"):
        said, _ = talk(port, b"hello\r\n\r\n")
    (line,) = [vars(record) for record in caplog.records if record.getMessage() == "refused"]
    assert line["status"] == 400
    assert line["id"].encode() in said


@pytest.mark.parametrize(("path", "status"), [("/healthz", 200), ("/", 200), ("/v1/predict", 405), ("/none", 404)])
def test_head_is_answered_as_get_without_a_body(port: int, path: str, status: int) -> None:
    said, _ = talk(port, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = said.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert b"content-length: " in head.lower() and not body


def test_headers_without_end(port: int) -> None:
    said, _ = talk(port, b"GET / HTTP/1.1\r\n" + b"X-Long: y\r\n" * 10_000)
    assert sentence_of(said)[0] == 400


def test_more_connections_than_there_may_be(listening: Callable[..., Any]) -> None:
    with listening(connections=20) as port:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        try:
            assert sentence_of(talk(port)[0])[0] == 503
        finally:
            for connection in silent:
                connection.close()
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        deadline = time.monotonic() + 5  # by which it has seen that they are closed
        while (said := talk(port, request)[0]).startswith(b"HTTP/1.1 503") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert said.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("size", [50_000, 500_000])
def test_a_client_that_does_not_read_is_cut_off(size: int) -> None:
    """Both more and less than asyncio keeps without telling: closing waits for either."""
    state = ServerState()
    kind = limited(Limits(time_s=0.3))

    async def application(scope: Any, receive: Any, send: Any) -> None:
        length = (b"content-length", str(size).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": bytes(size)})

    async def ends(holds: bool) -> bool:
        deadline = time.monotonic() + 5
        while bool(state.connections) == holds and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return bool(state.connections) != holds

    async def ask() -> None:
        config = uvicorn.Config(application, lifespan="off", log_config=None)
        with server.listen("127.0.0.1", 0) as listening, socket.socket() as client:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that the system takes little
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            loop = asyncio.get_running_loop()
            await loop.create_server(lambda: kind(config, state, {}), sock=listening)
            client.connect(listening.getsockname())
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert await ends(holds=False)
            assert await ends(holds=True)

    asyncio.run(ask())


def test_all_bodies_together_have_a_limit(port: int, tiny: ModuleType) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
        slow.sendall(post("Content-Length: 999999") + b"x" * 900_000)
        time.sleep(0.2)
        said, _ = talk(port, post("Content-Length: 700000"), b"x" * 700_000)
        status, found = sentence_of(said)
        assert (status, found["error"]) == (503, "too many photos are being uploaded at once")
    time.sleep(0.2)  # what is gone is counted no longer
    said, _ = talk(port, post("Content-Length: 900000", "Connection: close"), b"x" * 900_000)
    assert sentence_of(said)[0] == 422
    photo = tiny.photo(0)
    said, _ = talk(port, post(f"Content-Length: {len(photo)}", "Connection: close"), photo)
    assert sentence_of(said)[0] == 200


def test_the_services_own_page_is_let_in(client: TestClient, tiny: ModuleType) -> None:
    for headers in (
        {"Origin": "http://localhost"},
        {"Origin": "https://flowers.example", "Sec-Fetch-Site": "same-origin"},
    ):
        answer = client.post("/v1/predict", content=tiny.photo(0), headers={**JPEG, **headers})
        assert answer.status_code == 200
