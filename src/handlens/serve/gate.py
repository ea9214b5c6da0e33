"""Before every request and after it: its id, who may ask, how much it may send, the log, the headers of the answer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handlens.serve.limits import LOOPBACK, RefusedError, Settings
from handlens.serve.metrics import Metrics
from handlens.serve.uploads import too_long

log = logging.getLogger("handlens.serve")

LINGER_S = 2.0  # how long what a refused client still sends is taken in and dropped, so that it reads the answer
LINGER_BYTES = 32_000_000  # and how much of it
ARRIVED_S = 0.05  # how long what came while a request was kept waiting is taken in and dropped, before the answer
BACKSTOP = 2.5  # a request is cut off after so many times its limit: one for its body, one for its work, and some
POLICY = (  # scripts, styles and everything else from here only; WebAssembly and workers for classifying in the page
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self'; manifest-src 'self'; font-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TAKES_PHOTOS = ("/v1/predict", "/v1/corrections")
LOCAL = frozenset({LOOPBACK, "localhost", "::1"})
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
]


class Gate:
    """The outermost layer of the service.

    refuse_when_full: raises RefusedError when no photos are taken on now. It is asked here, with nothing of a request
    read and no route looked for, so that a refusal costs little.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, refuse_when_full: Callable[[], Awaitable[None]]
    ) -> None:
        self.app = app
        self.refuse_when_full = refuse_when_full
        self.limits = settings.limits
        # The names under which this machine's own browsers ask. A page of another site whose name was made to lead here
        # would pass for this service's page; a key or a certificate, which such a page does not have, keeps it out too.
        local = settings.host in LOCAL and not (settings.lan or settings.api_key or settings.tls_cert)
        self.hosts = LOCAL if local else frozenset()
        self.key = hashlib.sha256(settings.api_key.encode()).digest() if settings.api_key else b""
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any ASGI event; only requests are looked at."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        method = scope["method"]
        if method == "HEAD":  # answered as GET; uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else secrets.token_hex(8)
        told: dict[str, Any] = {}  # for the log, by those who answer
        scope.setdefault("state", {}).update(told=told)
        answer = _Answer(scope, receive, send, request_id, headers)
        try:
            async with asyncio.timeout(BACKSTOP * self.limits.time_s):
                try:
                    self.check(scope, headers)
                    if scope["path"] in TAKES_PHOTOS:
                        await self.refuse_when_full()
                except RefusedError as refused:
                    if refused.status == 503:  # with its photo taken in, a connection need not be closed and made anew
                        await answer.linger(ARRIVED_S)
                    await answer.refuse(refused)
                else:
                    await self.app(scope, answer.receive, answer.send)
        except TimeoutError:
            await answer.refuse(RefusedError(408, "the request took too long"))
        except Exception:
            log.exception("a bug in the service", extra={"id": request_id})
            await answer.refuse(
                RefusedError(500, "something went wrong in the service", f"its log has more on {request_id}")
            )
        finally:
            seconds = (answer.given or time.perf_counter()) - begun
            path = scope["path"]
            route = path if path in TAKES_PHOTOS else getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(answer.status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            log.info(
                "request",
                extra={
                    "id": request_id,
                    "method": method,
                    "path": path[:100],
                    "status": answer.status,
                    "ms": round(1000 * seconds, 1),
                    "bytes": answer.received,
                    **told,
                },
            )

    def check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raises RefusedError for a request that is not let in; nothing of its body has been read."""
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 18 or int(declared) > self.limits.body_bytes:
            raise too_long(self.limits)
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise RefusedError(415, "the request is compressed, which is not taken", "send photos as they are")
        site, origin = headers.get(b"sec-fetch-site", b""), headers.get(b"origin", b"")
        # Browsers say the first to trusted addresses only; a proxy may change what the second is compared with. Where
        # there is a key, a page of another site has none to send.
        elsewhere = not site and not self.key and origin and origin.partition(b"//")[2] != headers.get(b"host")
        if scope["method"] != "GET" and (site in (b"cross-site", b"same-site") or elsewhere):
            raise RefusedError(403, "a page of another site may not send photos here")
        host = re.sub(r":\d*$", "", headers.get(b"host", b"").decode("latin-1").lower()).strip("[]")
        if self.hosts and host and host not in self.hosts and not host.endswith(".localhost"):
            raise RefusedError(
                403,
                "this service answers on its own machine only, as localhost",
                "give it an API key, or --host, to be asked by another name",
            )
        if self.key and scope["path"].startswith(("/v1/", "/metrics")):
            scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
            key = bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
            if not hmac.compare_digest(hashlib.sha256(key).digest(), self.key):
                raise RefusedError(
                    401,
                    "this service wants its API key",
                    "send Authorization: Bearer KEY",
                    {"WWW-Authenticate": "Bearer"},
                )


class _Answer:
    """One request's `receive` and `send`, watched."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, headers: dict[bytes, bytes]
    ) -> None:
        self.status = 499  # the client left before there was an answer
        self.received = 0
        self.given = 0.0  # when its last byte was sent, before what a refused client still sends is taken in
        self._receive = receive
        self._send = send
        self._added = [*HEADERS, (b"x-request-id", request_id.encode())]
        if scope["path"].startswith("/v1/"):
            self._added.append((b"cache-control", b"no-store"))
        self._unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        self._started = self._ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started, self.status = True, message["status"]
            added = [*self._added, (b"connection", b"close")] if self._unread else self._added
            message = {**message, "headers": [*message["headers"], *added]}
        elif not message.get("more_body", False):
            self._ended = True
            if self._unread:
                await self._send({**message, "more_body": True})
                self.given = time.perf_counter()
                try:
                    await self.linger(LINGER_S)
                finally:  # also when the whole request has run out of time
                    await self._send({"type": "http.response.body", "body": b""})
                return
        await self._send(message)

    async def linger(self, seconds: float) -> None:
        """Drop what still comes, for a moment: a connection that is closed meanwhile would take the answer with it."""
        most = self.received + LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._unread and self.received < most:
                    await self.receive()

    async def refuse(self, refused: RefusedError) -> None:
        if self._ended:
            return
        if self._started:  # too late for a sentence: end what was begun
            self._ended = True
            raise ConnectionAbortedError("the answer was cut off")
        body = json.dumps(refused.to_dict()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})
