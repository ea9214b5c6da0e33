"""HTTP/1.1 as uvicorn speaks it by h11, with bounds on connections and on how slowly they send headers and read."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from handlens.serve import lan
from handlens.serve.limits import Limits, RefusedError, busy

log = logging.getLogger("handlens.serve")

HEADER_BYTES = 32_768  # of a request's first line and headers together


def limited(limits: Limits, local_only: bool = False) -> type[Protocol]:
    """The class of one server's connections: uvicorn makes them itself, and would pass no limits on."""
    return type("Protocol", (Protocol,), {"limits": limits, "local_only": local_only})


class Protocol(H11Protocol):
    """One connection."""

    limits: Limits
    local_only: bool
    _due: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Dropped when it comes from elsewhere; refused when there are as many as there may be."""
        super().connection_made(cast(asyncio.Transport, transport))
        # The time runs from the first byte that the system does not take on: by default it would from 64 KiB.
        self.transport.set_write_buffer_limits(high=1, low=0)
        if self.local_only and not (self.client and lan.is_local(self.client[0])):
            self.transport.abort()
        elif len(self.connections) > self.limits.connections:
            self._refuse(busy("too many connections are open"))
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Called with each piece that arrives."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called once, at the end."""
        self._forget()
        self._forget_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Called when the client does not read: closing would wait for it, so it is cut off when its time is over."""
        super().pause_writing()
        self._forget_unread()
        self._unread = self.loop.call_later(self.limits.time_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Called when all that was written is on its way."""
        super().resume_writing()
        self._forget_unread()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets a sentence, too."""
        if not self.transport.is_closing():
            self._refuse(RefusedError(400, "this is no proper HTTP request, or its headers are too long"))

    def _watch(self) -> None:
        """While a request's headers have not come to their end, the time runs."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._forget()
        elif self._due is None and self.timeout_keep_alive_task is None:
            self._due = self.loop.call_later(self.limits.header_s, self._too_slow)

    def _forget(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            seconds = self.limits.header_s
            self._refuse(RefusedError(408, f"the request's headers did not arrive within {seconds:g} seconds"))

    def _refuse(self, refused: RefusedError) -> None:
        """Answer past the application, and close."""
        request_id = secrets.token_hex(8)
        log.info("refused", extra={"id": request_id, "status": refused.status, "error": refused.message})
        body = json.dumps(refused.to_dict()).encode()
        headers: dict[str, Any] = {
            "Content-Type": "application/json",
            "Content-Length": len(body),
            "Connection": "close",
            "X-Request-Id": request_id,
            **refused.headers,
        }
        lines = [f"HTTP/1.1 {refused.status} {STATUS_PHRASES[refused.status].decode()}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
