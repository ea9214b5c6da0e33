"""Fetching against a server on loopback that behaves in every bad way one does."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from handlens import download, files
from handlens.download import fetch
from handlens.errors import HandlensError

DATA = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `data` at /file.bin; the fields say how badly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = DATA
        self.etag: str | None = '"one"'
        self.ranges = True  # whether it knows Range
        self.trusts_range = False  # answers a Range request without looking at If-Range
        self.stop_after: list[int] = []  # bytes after which to hang up, an answer each
        self.stall_after: list[int] = []  # bytes after which to fall silent, an answer each
        self.statuses: list[int] = []  # answers to give before the true one
        self.status = 200
        self.states_length = True
        self.requests: list[dict[str, str]] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/some/file.bin"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        status = server.statuses.pop(0) if server.statuses else server.status
        if status != 200:
            self.send_error(status)
            return
        start, given = 0, self.headers.get("Range")
        fresh = server.trusts_range or self.headers.get("If-Range") in (None, server.etag)
        if server.ranges and given and fresh:
            start = int(given.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.data):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        if server.states_length:
            self.send_header("Content-Length", str(len(server.data) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        body = server.data[start:]
        if server.stop_after:
            self.wfile.write(body[: server.stop_after.pop(0)])
        elif server.stall_after:
            self.wfile.write(body[: server.stall_after.pop(0)])
            self.wfile.flush()
            server.released.wait(5)
        else:
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "_PAUSE_S", 0.001)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_checked_and_not_fetched_again(server: Server, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = fetch(server.url, sha256=SHA256, folder=tmp_path, progress=lambda *call: calls.append(call))
    assert path == tmp_path / "file.bin" and path.read_bytes() == DATA
    assert left_in(tmp_path) == ["file.bin"]
    assert calls[-1] == (len(DATA), len(DATA)) and calls == sorted(calls) and len(calls) > 1
    assert fetch(server.url, sha256=SHA256.upper(), folder=tmp_path) == path
    assert fetch(server.url, sha256_prefix=SHA256[:8], size_bytes=len(DATA), folder=tmp_path) == path
    assert len(server.requests) == 1


def test_it_lands_in_the_cache(server: Server) -> None:
    assert fetch(server.url, name="here.bin") == files.cache_folder() / "downloads" / "here.bin"


def test_a_cached_file_with_another_hash_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"damaged")
    assert fetch(server.url, sha256=SHA256, folder=tmp_path).read_bytes() == DATA


def test_without_a_hash_the_size_decides(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"damaged")
    assert fetch(server.url, folder=tmp_path).read_bytes() == b"damaged"
    assert fetch(server.url, folder=tmp_path, size_bytes=len(DATA)).read_bytes() == DATA


@pytest.mark.parametrize("states_length", [True, False])
def test_a_length_that_the_server_states_or_not(server: Server, tmp_path: Path, states_length: bool) -> None:
    server.states_length = states_length
    calls: list[tuple[int, int]] = []
    fetch(server.url, folder=tmp_path, sha256=SHA256, progress=lambda *call: calls.append(call))
    assert calls[-1] == (len(DATA), len(DATA) if states_length else 0)


def test_a_truncated_answer_is_continued(server: Server, tmp_path: Path) -> None:
    server.stop_after = [100_000, 50_000, 1]
    assert fetch(server.url, sha256=SHA256, folder=tmp_path).read_bytes() == DATA
    assert [request.get("Range") for request in server.requests] == [
        None, "bytes=100000-", "bytes=150000-", "bytes=150001-",
    ]  # fmt: skip
    assert left_in(tmp_path) == ["file.bin"]


def test_a_stalled_answer_is_continued(server: Server, tmp_path: Path) -> None:
    server.stall_after = [70_000]
    assert fetch(server.url, sha256=SHA256, folder=tmp_path, timeout_s=0.2).read_bytes() == DATA
    assert len(server.requests) == 2 and "Range" in server.requests[1]


def test_a_server_that_gets_nowhere_is_given_up_and_resumed_later(server: Server, tmp_path: Path) -> None:
    server.stop_after = [10_000] * download._TRIES
    with pytest.raises(HandlensError, match=r"stopped after 50,000 bytes \(300,000 were announced\).*continues"):
        fetch(server.url, sha256=SHA256, folder=tmp_path)
    assert left_in(tmp_path) == ["file.bin.part", "file.bin.part.json"]
    server.requests.clear()
    assert fetch(server.url, sha256=SHA256, folder=tmp_path).read_bytes() == DATA
    assert [(request["Range"], request["If-Range"]) for request in server.requests] == [("bytes=50000-", '"one"')]


def test_progress_counts_the_part_that_was_there(server: Server, tmp_path: Path) -> None:
    server.stop_after = [100_000]
    calls: list[tuple[int, int]] = []
    fetch(server.url, folder=tmp_path, progress=lambda *call: calls.append(call))
    assert all(total == len(DATA) for _, total in calls)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def interrupted(server: Server, folder: Path) -> None:
    """Leave 50,000 bytes of the server's file in `folder`."""
    server.stop_after = [10_000] * download._TRIES
    with pytest.raises(HandlensError):
        fetch(server.url, folder=folder)
    assert (folder / "file.bin.part").stat().st_size == 50_000
    server.requests.clear()


def test_a_server_that_ignores_range_starts_over(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    server.ranges = False
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA
    assert len(server.requests) == 1


@pytest.mark.parametrize("trusts_range", [False, True])
def test_a_file_that_changed_starts_over(server: Server, tmp_path: Path, trusts_range: bool) -> None:
    interrupted(server, tmp_path)
    server.data, server.etag, server.trusts_range = DATA[::-1], '"two"', trusts_range
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA[::-1]


def test_a_file_whose_length_changed_starts_over(server: Server, tmp_path: Path) -> None:
    server.etag = None
    interrupted(server, tmp_path)
    server.data = DATA[::-1] + b"more"
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA[::-1] + b"more"


def test_a_file_that_became_shorter_than_what_is_here_starts_over(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    server.data, server.trusts_range = b"short", True
    assert fetch(server.url, folder=tmp_path).read_bytes() == b"short"


def test_a_part_of_another_address_is_not_continued(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    fetch(server.url + "?version=2", name="file.bin", folder=tmp_path)
    assert "Range" not in server.requests[0]


def test_a_changed_file_that_nothing_gives_away_is_found_by_its_hash(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    server.data = DATA[::-1]  # same length and ETag
    sha256 = hashlib.sha256(server.data).hexdigest()
    assert fetch(server.url, folder=tmp_path, sha256=sha256).read_bytes() == server.data


def test_a_part_that_is_complete_needs_no_request(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    (tmp_path / "file.bin.part").write_bytes(DATA)
    assert fetch(server.url, folder=tmp_path, sha256=SHA256).read_bytes() == DATA
    assert server.requests == []


def test_a_damaged_note_starts_over(server: Server, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    (tmp_path / "file.bin.part.json").write_text("{")
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA
    assert "Range" not in server.requests[0]


@pytest.mark.parametrize("given", [{"sha256": "0" * 64}, {"sha256_prefix": "00000000"}])
def test_a_wrong_hash_is_refused_and_nothing_kept(server: Server, tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(HandlensError) as caught:
        fetch(server.url, folder=tmp_path, **given)  # type: ignore[arg-type]
    assert SHA256 in caught.value.message and "00000000" in caught.value.message
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("states_length", [True, False])
def test_a_wrong_size_is_refused(server: Server, tmp_path: Path, states_length: bool) -> None:
    server.states_length = states_length
    with pytest.raises(HandlensError, match=r"is 300,000 bytes long, expected 7"):
        fetch(server.url, folder=tmp_path, size_bytes=7)
    assert left_in(tmp_path) == []


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "words"), [(404, r"does not exist on the server \(404\)"), (403, r"was refused \(403 Forbidden\)")]
)
def test_a_refusal_is_not_asked_again(server: Server, tmp_path: Path, status: int, words: str) -> None:
    server.status = status
    with pytest.raises(HandlensError, match=words):
        fetch(server.url, folder=tmp_path)
    assert len(server.requests) == 1 and left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("127.0.0.1:1", r"127.0.0.1:1 could not be reached \(Connection refused\)"),
        ("no.invalid", "no.invalid could not"),
    ],
)
def test_without_a_network_it_says_so_in_a_sentence(tmp_path: Path, host: str, words: str) -> None:
    with pytest.raises(HandlensError, match=words) as caught:
        fetch(f"http://{host}/file.bin", folder=tmp_path)
    assert "\n" not in str(caught.value) and "check the network" in caught.value.hint
    assert "".join(traceback.format_exception(caught.value)).count("Traceback") == 1
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host/file", "weights.pth"])
def test_only_web_addresses(tmp_path: Path, url: str) -> None:
    with pytest.raises(HandlensError, match="no http or https address"):
        fetch(url, folder=tmp_path)


def test_an_address_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match="does not name a file"):
        fetch("http://127.0.0.1/", folder=tmp_path)


def test_a_full_disk_leaves_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(HandlensError, match=r"the disk is full: .*file.bin could not be written"):
        fetch(server.url, folder=tmp_path)
    assert left_in(tmp_path) == []


def test_a_disk_that_fills_in_the_middle(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    plain = Path.open

    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        return plain(Path("/dev/full") if path.suffix == ".part" else path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(HandlensError, match="the disk is full"):
        fetch(server.url, folder=tmp_path)
    assert left_in(tmp_path) == []


def test_a_file_where_the_folder_should_be(server: Server, tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in the way")
    with pytest.raises(HandlensError, match="in the way"):
        fetch(server.url, folder=tmp_path / "folder")


FETCH = "import sys; from handlens.download import fetch; fetch(sys.argv[1], sha256=sys.argv[2], folder=sys.argv[3])"


def test_processes_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FETCH, server.url, SHA256, str(tmp_path)]
    server.stall_after = [1000]  # the first is in the middle of it when the others come
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for _ in range(1000):
        if server.requests:
            break
        time.sleep(0.01)
    threading.Timer(0.5, server.released.set).start()
    for process in processes:
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors.decode()
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert left_in(tmp_path) == ["file.bin"]
    assert len(server.requests) == 2  # the stalled answer and its continuation


def test_threads_at_once(server: Server, tmp_path: Path) -> None:
    server.stop_after = [1000] * 3
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(server.url, folder=tmp_path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(paths) == 6 and paths[0].read_bytes() == DATA
    assert len(server.requests) == 4 and left_in(tmp_path) == ["file.bin"]


def test_it_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, handlens.download; assert not {'torch', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
