"""The process: its address, its certificates, its end, its logs."""

from __future__ import annotations

import datetime
import io
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from handlens.errors import HandlensError
from handlens.serve import Limits, Settings, lan, logs, server

HANDLENS = [sys.executable, "-m", "handlens"]


@pytest.fixture
def process(tiny_bundle: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`handlens serve` as people start it, and its port."""
    with (tmp_path / "log").open("w") as log:
        made = subprocess.Popen(
            [*HANDLENS, "serve", tiny_bundle, "--port", "0", "--threads", "1"],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        line = made.stdout.readline() if made.stdout else ""
        found = re.fullmatch(r"Serving at http://127\.0\.0\.1:(\d+)/  \(Ctrl-C stops it\)\n", line)
        assert found, (line, (tmp_path / "log").read_text())
        yield made, int(found[1])
    finally:
        made.kill()
        made.communicate()


def test_it_stops_in_good_order(process: tuple[subprocess.Popen[str], int], tiny: ModuleType, tmp_path: Path) -> None:
    made, port = process
    photo = tiny.photo(1)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as half:
        head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        head += f"Content-Length: {len(photo)}\r\n\r\n"
        half.sendall(head.encode() + photo[:100])
        time.sleep(0.2)
        made.send_signal(signal.SIGTERM)
        time.sleep(0.4)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        half.sendall(photo[100:])
        said = b""
        while data := half.recv(65536):
            said += data
    assert said.startswith(b"HTTP/1.1 200")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["answers"][0]["guesses"][0]["name"] == "花朵"
    assert made.wait(20) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    request = next(line for line in lines if line["message"] == "request")
    assert request["status"] == 200 and request["photos"] == 1 and request["bytes"] == len(photo)
    assert request["id"] in said.decode()
    assert request["ms"] > 0 and request["time"].endswith("Z")


def test_torch_is_not_loaded_for_other_runtimes(tiny_bundle: Path) -> None:
    script = """if True:
        import sys
        from handlens.serve import Settings, server
        from pathlib import Path
        made, listening = server.make(Settings(bundles={"b": Path(sys.argv[1])}, port=0, threads=1))
        listening.close()
        loaded = {name.partition(".")[0] for name in sys.modules}
        print(sorted(loaded & {"torch", "matplotlib", "sklearn", "onnxruntime"}))
    """
    done = subprocess.run([sys.executable, "-c", script, tiny_bundle], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['onnxruntime']", done.stderr


def test_a_port_in_use(tiny_bundle: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HandlensError, match=f"port {port} of 127.0.0.1 is in use already; .*--port {port + 1}"):
            server.listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.7"])
def test_an_address_of_another_machine(host: str) -> None:
    with pytest.raises(HandlensError, match=r"--host 127\.0\.0\.1"):
        server.listen(host, 0)


def test_answers_come_without_nagles_delay() -> None:
    with server.listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP  # what asyncio sets TCP_NODELAY by


def test_files_that_are_no_certificate(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cert").write_text("hello")
    settings = Settings(bundles={"b": tiny_bundle}, port=0, tls_cert=tmp_path / "cert", tls_key=tmp_path / "none")
    with pytest.raises(HandlensError, match="are no certificate and its key"):
        server.make(settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bundles": {}}, "no bundle"),
        ({"tls_cert": Path("a")}, "needed together"),
        ({"api_key": "short"}, "16 or more"),
        ({"api_key": "a-key-of-many-letters\nand another"}, "16 or more"),
        ({"api_key": "a-key-of-many-letters\u200b"}, "16 or more"),
        ({"lan": True, "host": "0.0.0.0"}, "leave out --host"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(HandlensError, match=message):
        Settings(**{"bundles": {"b": Path("b")}, **given})


@pytest.mark.parametrize(
    "given",
    [
        *({"files": 0}, {"files": 17, "photos": 16}, {"body_bytes": 300_000_000}, {"wait_s": -1}, {"time_s": 0}),
        *({"time_s": float("inf")}, {"wait_s": float("nan")}),
    ],
)
def test_limits_that_cannot_be(given: dict[str, Any]) -> None:
    with pytest.raises(HandlensError):
        Limits(**given)


# ---- phones ----------------------------------------------------------------------------------------------------------
LOCAL = [ipaddress.ip_address("192.168.1.20"), ipaddress.ip_address("fd00::7")]


def greet(cert: Path, key: Path, authority: Path, name: str) -> str:
    """The service's certificate looked at by a client that trusts the authority; "" when it is content."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(cert, key)
    theirs = ssl.create_default_context(cafile=str(authority))
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    service = ours.wrap_bio(there, here, server_side=True)
    client = theirs.wrap_bio(here, there, server_hostname=name)
    for _ in range(4):
        for side in (client, service):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
    return ""


def test_a_phone_that_trusts_the_authority_trusts_the_machine(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        made = lan.certificate(tmp_path / "lan", LOCAL)
    finally:
        assert os.umask(mask) == 0o022  # other files of this process are as open as before
    for name in ("192.168.1.20", "fd00::7", "127.0.0.1", "localhost"):
        assert greet(made.cert, made.key, made.authority, name) == "", name
    assert "mismatch" in greet(made.cert, made.key, made.authority, "192.168.1.21")
    assert {path.name: path.stat().st_mode & 0o077 for path in made.cert.parent.glob("*.key")} == {
        "machine.key": 0,
        "authority.key": 0,
    }
    machine = x509.load_pem_x509_certificate(made.cert.read_bytes())
    assert machine.not_valid_after_utc - machine.not_valid_before_utc <= datetime.timedelta(days=398)
    behind = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=20)
    assert machine.not_valid_before_utc < behind  # as a phone's clock may be


def test_the_authority_can_vouch_for_no_other_site(tmp_path: Path) -> None:
    made = lan.certificate(tmp_path, LOCAL)
    issuer = x509.load_pem_x509_certificate(made.authority.read_bytes())
    issuer_key = serialization.load_pem_private_key((tmp_path / "authority.key").read_bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    assert issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    permitted = issuer.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
    assert {name.value for name in permitted if isinstance(name, x509.DNSName)} == {"localhost", "local"}
    for address in ("8.8.8.8", "2606:4700::1"):
        key = ec.generate_private_key(ec.SECP256R1())
        forged = lan._machine(key, issuer, issuer_key, [ipaddress.ip_address(address)])
        (tmp_path / "forged.pem").write_bytes(forged.public_bytes(serialization.Encoding.PEM))
        lan._write_key(tmp_path / "forged.key", key)
        refused = greet(tmp_path / "forged.pem", tmp_path / "forged.key", made.authority, address)
        assert refused == "permitted subtree violation"


def test_certificates_are_kept_and_renewed_when_the_address_changes(tmp_path: Path) -> None:
    first = lan.certificate(tmp_path, LOCAL)
    cert, authority = first.cert.read_bytes(), first.authority.read_bytes()
    assert lan.certificate(tmp_path, LOCAL[::-1]).cert.read_bytes() == cert
    moved = lan.certificate(tmp_path, LOCAL[:1])
    assert moved.cert.read_bytes() != cert
    assert moved.authority.read_bytes() == authority  # what the phone trusts stays
    (tmp_path / "machine.pem").write_text("damaged")
    with pytest.raises(HandlensError, match="remove that folder"):
        lan.certificate(tmp_path, LOCAL)


def test_on_the_local_network(
    listening: Callable[..., Any], tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lan, "addresses", lambda: [ipaddress.ip_address("192.168.1.20")])
    with listening(lan=True) as port:
        authority = Path(os.environ["HANDLENS_CACHE"]) / "lan" / "authority.crt"
        trusting = ssl.create_default_context(cafile=str(authority))
        url = f"https://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{url}/handlens.crt", context=trusting) as found:
            assert found.headers["content-type"] == "application/x-x509-ca-cert"
            assert found.read() == authority.read_bytes()
        asked = urllib.request.Request(f"{url}/v1/predict", tiny.photo(0), {"Content-Type": "image/png"})
        with urllib.request.urlopen(asked, context=trusting) as found:
            assert json.load(found)["answers"][0]["guesses"][0]["name"] == "blue sky"
        with pytest.raises(OSError):
            urllib.request.urlopen(f"{url}/healthz")  # who does not trust the authority


@pytest.mark.parametrize(
    ("address", "local"),
    [
        *(("192.168.1.7", True), ("10.1.2.3", True), ("::ffff:192.168.1.7", True), ("127.0.0.1", True), ("::1", True)),
        *(("169.254.3.4", True), ("fe80::1%eth0", True), ("fd00::7", True), ("::ffff:127.0.0.1", True)),
        *(("8.8.8.8", False), ("::ffff:8.8.8.8", False), ("2606:4700::1", False), ("172.32.0.1", False)),
        *(("172.31.255.1", True), ("172.15.0.1", False)),
    ],
)
def test_which_clients_are_local(address: str, local: bool) -> None:
    assert lan.is_local(address) == local


def test_who_is_not_on_the_local_network_is_dropped_before_the_handshake(
    listening: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lan, "addresses", lambda: LOCAL[:1])
    monkeypatch.setattr(lan, "is_local", lambda address: "127.0.0.1" not in address)
    with listening(lan=True) as port, socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        assert client.recv(1) == b""


def test_who_is_not_on_the_local_network_is_dropped_where_accept_is_the_systems(
    listening: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.Listening, "accept", socket.socket.accept)  # as on Windows
    monkeypatch.setattr(lan, "addresses", lambda: LOCAL[:1])
    monkeypatch.setattr(lan, "is_local", lambda address: "127.0.0.1" not in address)
    with listening(lan=True) as port:
        trusting = ssl.create_default_context(cafile=str(Path(os.environ["HANDLENS_CACHE"]) / "lan" / "authority.crt"))
        with pytest.raises(OSError):
            urllib.request.urlopen(f"https://127.0.0.1:{port}/healthz", context=trusting)


@pytest.mark.parametrize("name", ["mybox", "MyBox.fritz.box", "mybox.local"])
def test_the_certificates_name_is_what_mdns_calls_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    made = lan.certificate(tmp_path, LOCAL)
    assert greet(made.cert, made.key, made.authority, "mybox.local") == ""


def test_silent_connections_end_before_their_handshake_and_have_a_bound(
    listening: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MORE_CONNECTIONS", 5)
    cert, key, authority = lan.certificate(tmp_path, LOCAL)
    trusting = ssl.create_default_context(cafile=str(authority))
    with listening(tls_cert=cert, tls_key=key, connections=20, header_s=1.0) as port:
        begun = time.perf_counter()
        silent = [socket.create_connection(("127.0.0.1", port), timeout=8) for _ in range(40)]
        closed = []
        for connection in reversed(silent):
            with connection:
                assert connection.recv(1) == b""
            closed.append(time.perf_counter() - begun)
        assert closed[14] < 0.9 and 0.9 < closed[-1] < 4  # the last 15 at once, the others when their time is over
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/healthz", context=trusting) as found:
            assert found.status == 200


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_it_may_have_as_many_connections_open_as_its_limit_says() -> None:
    script = """if True:
        import resource
        from handlens.serve import server
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        server._allow_descriptors()
        soft, after = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert after == hard
        print(soft == server.DESCRIPTORS or soft == hard)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_what_a_person_with_a_phone_is_told(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.tell(Settings(bundles={"b": tiny_bundle}, lan=True), "0.0.0.0", 8000, True, LOCAL)
    said = capsys.readouterr().out
    assert "https://192.168.1.20:8000/  https://[fd00::7]:8000/" in said
    assert "▄" in said and "█" in said
    for words in ("Everybody on this network", "/handlens.crt", "Certificate Trust Settings"):
        assert words in said


def test_without_a_network(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan, "addresses", list)
    with pytest.raises(HandlensError, match="no address on a local network"):
        server.make(Settings(bundles={"b": tiny_bundle}, lan=True, port=0))


def test_this_machines_addresses_are_private() -> None:
    assert all(address.is_private and not address.is_loopback for address in lan.addresses())


def test_addresses_that_no_phone_can_reach_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Link-local ones need the name of an interface, public ones are no local network's."""
    named = ("169.254.3.4", "fe80::1%eth0", "127.0.1.1", "203.0.113.9", "192.168.7.8", "fd00::8")
    monkeypatch.setattr(lan.socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", (name, 0)) for name in named])

    def no_way_out(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(lan.socket, "socket", no_way_out)
    assert [str(address) for address in lan.addresses()] == ["192.168.7.8", "fd00::8"]


# ---- logs ------------------------------------------------------------------------------------------------------------
def test_a_log_line_is_one_json_object() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("it %s", "failed", extra={"id": "a\nb", "photos": 2})
    assert stream.getvalue().count("\n") == 1
    line = json.loads(stream.getvalue())
    assert (line["level"], line["message"], line["id"], line["photos"]) == ("error", "it failed", "a\nb", 2)
    assert "ValueError: two\nlines" in line["traceback"]


def test_the_process_is_left_as_it_was(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who serves from a program of their own may go on after it, and end it."""

    def stopped(self: Any, sockets: Any = None) -> None:
        assert signal.getsignal(signal.SIGINT) is not before[0] and logging.root.handlers != before[2]

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), list(logging.root.handlers)
    monkeypatch.setattr(server._Server, "run", stopped)
    server.run(Settings(bundles={"tiny": tiny_bundle}, port=0, threads=1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), logging.root.handlers) == before


@pytest.mark.parametrize(("which", "kept"), [("DAYS", True), ("AUTHORITY_DAYS", False)])
def test_certificates_are_renewed_before_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, kept: bool
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(lan, which, lan.RENEW_DAYS - 1)
        first = lan.certificate(tmp_path, LOCAL)
    cert, authority = first.cert.read_bytes(), first.authority.read_bytes()
    again = lan.certificate(tmp_path, LOCAL)
    assert again.cert.read_bytes() != cert
    assert (again.authority.read_bytes() == authority) == kept  # what the phone trusts stays
    assert greet(again.cert, again.key, again.authority, "localhost") == ""
