"""The process: an address, certificates, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import ssl
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from handlens import files
from handlens.errors import HandlensError
from handlens.serve import lan, logs
from handlens.serve.app import create
from handlens.serve.limits import Settings
from handlens.serve.models import Models
from handlens.serve.protocol import HEADER_BYTES, limited

BACKLOG = 256
MORE_CONNECTIONS = 256  # than the limit are accepted: those past it are told so, if they speak TLS after a handshake
DESCRIPTORS = 4096  # files and connections open at once: some systems begin with 256


def run(settings: Settings) -> None:
    """See `handlens.serve.run`."""
    _allow_descriptors()
    server, listening = make(settings)
    with listening, logs.in_json():
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # uvicorn stops in good order, and then raises the signal once more for who was there before: nobody.
                before[number] = signal.signal(number, lambda number, frame: None)
        try:
            server.run(sockets=[listening])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def make(settings: Settings) -> tuple[uvicorn.Server, socket.socket]:
    """All that is needed to serve, with the address taken and the bundles loaded. Raises what `run` does."""
    host = settings.host
    if settings.lan:
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # "::" takes both kinds of address then
    listening = listen(host, settings.port)
    listening.most = settings.limits.connections + MORE_CONNECTIONS
    listening.local_only = settings.lan
    try:
        local = [ip for ip in lan.addresses() if ip.version == 4 or host == "::"] if settings.lan else []
        if settings.lan and not local:
            raise HandlensError(
                "this machine has no address on a local network", "connect it to one, or leave out --lan"
            )
        cert, key, authority = settings.tls_cert, settings.tls_key, None
        if settings.lan and not cert:
            cert, key, authority = lan.certificate(files.cache_folder() / "lan", local)
        if cert and key:
            _check(cert, key)
        models = Models(settings.bundles, settings.threads)
        config = uvicorn.Config(
            create(settings, models, authority),
            http=limited(settings.limits, settings.lan),
            loop="asyncio",  # whatever else is installed: see Listening
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=int(2 * settings.limits.time_s) + 1,
            ssl_certfile=cert,
            ssl_keyfile=key,
        )
    except BaseException:
        listening.close()
        raise
    port = listening.getsockname()[1]
    return _Server(config, settings.limits.header_s, lambda: tell(settings, host, port, bool(cert), local)), listening


class _Server(uvicorn.Server):
    """uvicorn's, which says when it listens, and gives a TLS handshake as long as a request's headers."""

    def __init__(self, config: uvicorn.Config, handshake_s: float, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self.handshake_s = handshake_s
        self.listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # all but the sockets: uvicorn would give a handshake 60 seconds
        tls: dict[str, Any] = {}
        if self.config.ssl:
            times = dict.fromkeys(("ssl_handshake_timeout", "ssl_shutdown_timeout"), self.handshake_s)
            tls = {"ssl": self.config.ssl, **times}
        loop = asyncio.get_running_loop()
        for one in sockets or ():
            self.servers.append(await loop.create_server(self._connection, sock=one, backlog=BACKLOG, **tls))
        self.listening()

    def _connection(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        made: asyncio.Protocol = kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return made


class Listening(socket.socket):
    """A listening socket with a bound on its open connections; `protocol` sees only those whose handshake is done.

    local_only: whether clients with other than private addresses are dropped.

    asyncio's loop calls `accept` on Linux and macOS. On Windows the time that a handshake has is the only bound, and
    `protocol` drops clients after it.
    """

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self.most = sys.maxsize
        self.local_only = False
        self.accepted: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises ConnectionAbortedError, as if it had gone already, when it is dropped."""
        connection, address = super().accept()
        if self.local_only and not lan.is_local(address[0]):
            connection.close()
            raise ConnectionAbortedError("it comes from outside the local network")
        if len(self.accepted) >= self.most:
            self.accepted = weakref.WeakSet(one for one in self.accepted if one.fileno() >= 0)  # less the closed ones
            if len(self.accepted) >= self.most:
                connection.close()
                raise ConnectionAbortedError("too many connections are open")
        self.accepted.add(connection)
        return connection, address


def _allow_descriptors() -> None:
    """Have as many files and connections open as `DESCRIPTORS` says, or what this system lets a program have."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen(host: str, port: int) -> Listening:
    """A socket at the address, which nobody can connect to yet. Raises HandlensError when it is not to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = Listening(family, kind, protocol)  # with its protocol named, else asyncio sets no TCP_NODELAY
        try:
            if sys.platform == "win32":  # else it would share the port with whoever has it
                found.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if host == "::" and socket.has_dualstack_ipv6():
                found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            found.bind(address)
        except BaseException:
            found.close()
            raise
        return found
    except socket.gaierror:
        raise HandlensError(f"{host} is no address of this machine", "try --host 127.0.0.1") from None
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise HandlensError(
                f"port {port} of {host} is in use already", f"stop what uses it, or try --port {port + 1}"
            ) from None
        if number == errno.EACCES:
            raise HandlensError(f"port {port} is reserved by the system", "choose one from 1024 on") from None
        raise HandlensError(f"cannot serve at {host}, port {port}", "try --host 127.0.0.1 --port 8000") from None


def _check(cert: Path, key: Path) -> None:
    """Raise HandlensError unless the files are a certificate and its key."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (OSError, ValueError):
        raise HandlensError(
            f"{cert} and {key} are no certificate and its key",
            "give PEM files that belong together, without a password",
        ) from None


def tell(settings: Settings, host: str, port: int, tls: bool, local: list[lan.Address]) -> None:
    """Say on standard output where it is served, and on a local network how a phone gets there."""
    scheme = "https" if tls else "http"
    said = []
    if settings.lan:
        urls = [f"{scheme}://{f'[{ip}]' if ip.version == 6 else ip}:{port}/" for ip in local]
        said += [
            f"On this network: {'  '.join(urls)}",
            lan.qr(urls[0]),
            "Everybody on this network can use it"
            + ("" if settings.api_key else ", also without a key (--api-key-file)."),
        ]
        if not settings.tls_cert:
            said += [
                "The phone's browser will say that the connection is not private: the certificate was made by this",
                "machine, and no phone knows it. Either go on all the same (Advanced, Proceed; in Safari Show Details,",
                f"visit this website): the camera works then. Or trust it for good: open {urls[0]}handlens.crt on the",
                "phone, install it as a CA certificate in the settings, and on an iPhone switch it on under General,",
                "About, Certificate Trust Settings. It can vouch for private addresses only, never for other sites.",
            ]
    else:
        shown = f"[{host}]" if ":" in host else host
        said.append(f"Serving at {scheme}://{shown}:{port}/  (Ctrl-C stops it)")
    encoding = sys.stdout.encoding or "utf-8"
    text = "\n".join(said) + "\n"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
