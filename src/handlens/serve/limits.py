"""What a service is told: which bundles, where, and how much it takes on."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

from handlens.errors import HandlensError, counted

LOOPBACK = "127.0.0.1"
MIN_KEY = 16  # characters of an API key: fewer can be guessed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one request, and all together, may cost.

    body_bytes:   of one request, as it is sent; what is declared to be more is refused unread.
    pixels:       of one photo, from its header, before any is decoded.
    files:        photos of one request.
    time_s:       for a request's body to arrive, then again for its photos to be answered, and for the client to read.
    header_s:     for a request's first line and headers to arrive.
    photos:       being decoded, waiting and in the network at once, of all requests; with more the answer is 503.
    held_bytes:   of request bodies in memory at once; with more the answer is 503.
    wait_s:       how long a photo waits at most for others to go into the network with it.
    connections:  open at once.
    kept:         corrected photos in the folder for them.
    """

    body_bytes: int = 20_000_000
    pixels: int = 50_000_000
    files: int = 16
    time_s: float = 20.0
    header_s: float = 10.0
    photos: int = 48
    held_bytes: int = 256_000_000
    wait_s: float = 0.003
    connections: int = 512
    kept: int = 10_000

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or not (value >= 0 if field.name == "wait_s" else value > 0):
                raise HandlensError(f"{field.name} is {value}, expected a positive number")
        if self.photos < self.files:
            raise HandlensError(
                f"a request may have {counted(self.files, 'photo')}, but only {self.photos} at once are taken on",
                "raise --queue or lower --max-files",
            )
        if self.held_bytes < self.body_bytes:
            raise HandlensError(
                f"a request may have {self.body_bytes:,} bytes, but only {self.held_bytes:,} are held at once",
                "lower --max-body-mb",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What `handlens serve` was asked for.

    bundles:  paths by name; the first is the one that answers where a request names none.
    threads:  of the processor for the networks, 0 for the runtime's choice.
    lan:      whether phones on the local network are served, with a certificate of our own.
    api_key:  what requests to /v1 and /metrics must carry, or "" for none.
    keep:     where wrongly answered photos are put, or None: none is kept.
    poll_s:   how often the bundles' files are looked at for a new version.
    """

    bundles: Mapping[str, Path]
    host: str = LOOPBACK
    port: int = 8000
    threads: int = 0
    lan: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    api_key: str = ""
    keep: Path | None = None
    poll_s: float = 2.0
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.bundles:
            raise HandlensError("no bundle was named", "`handlens export RUN` makes one")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise HandlensError("a certificate and its key are needed together", "give --tls-cert and --tls-key")
        if self.lan and self.host != LOOPBACK:
            raise HandlensError("--lan serves at all addresses of this machine", "leave out --host")
        if self.api_key and not re.fullmatch(rf"[!-~]{{{MIN_KEY},}}", self.api_key):
            raise HandlensError(
                f"the API key is no word of {MIN_KEY} or more ASCII characters",
                'make one with `python -c "import secrets; print(secrets.token_urlsafe())"`',
            )


class RefusedError(Exception):
    """A request that gets a status of 400 or more, one sentence and perhaps a hint."""

    def __init__(self, status: int, message: str, hint: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.hint = hint
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, str]:
        """As in every answer that refuses: {"error", "hint"}."""
        return {"error": self.message, "hint": self.hint}


def busy(what: str = "as many photos as it can answer soon are waiting already") -> RefusedError:
    """The refusal of a service that has enough to do."""
    return RefusedError(503, what, "try again in a second", {"Retry-After": "1"})
