"""Photos out of a request's body, in memory and within limits: multipart, the bytes of one photo, or JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from handlens.errors import counted
from handlens.serve.limits import Limits, RefusedError, busy

FIELD = "photos"
LONGEST_NAME = 200  # characters of a file's name that are given back
OTHER_PARTS = 16  # of a body, beside the photos
MOST_BRACKETS = 64  # that open in a JSON body, where two are needed
LONGEST_VALUE = 1000  # bytes of a multipart field that is no photo
KINDS = "send multipart/form-data with the field photos, the bytes of one photo as image/jpeg, or JSON"


class Upload(NamedTuple):
    """A photo as it came: its bytes, and the file's name if it had one."""

    name: str | None
    data: bytes


class Uploads(NamedTuple):
    """What a body held: photos, and the values given beside them ("top", "model")."""

    photos: list[Upload]
    values: dict[str, str]


class Held:
    """The bytes of all request bodies that are in memory now."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0

    def add(self, count: int) -> None:
        """Raises RefusedError (503) when there would be more than the limit."""
        if self.bytes + count > self.limit:
            raise busy("too many photos are being uploaded at once")
        self.bytes += count


@contextlib.asynccontextmanager
async def body_of(request: Request, held: Held, limits: Limits) -> AsyncIterator[bytes]:
    """The request's body, held within the block.

    Raises RefusedError: 413 as soon as it is too long, 408 when it takes too long, 400 when it ends early, 503 when all
    bodies together are too much.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.time_s):
            async for chunk in request.stream():
                held.add(len(chunk))
                size += len(chunk)
                if size > limits.body_bytes:
                    raise too_long(limits)
                chunks.append(chunk)
        body = b"".join(chunks)
        chunks.clear()  # or it would be held twice
        yield body
    except TimeoutError:
        raise RefusedError(
            408, f"the photos did not arrive within {limits.time_s:g} seconds", "send fewer at once"
        ) from None
    except ClientDisconnect:
        raise RefusedError(400, "the connection was closed before the photos had arrived") from None
    finally:
        held.bytes -= size


def too_long(limits: Limits) -> RefusedError:
    """The refusal of a body above the limit."""
    return RefusedError(
        413, f"the request has more than {limits.body_bytes:,} bytes", "send smaller photos, or fewer at once"
    )


def parse(body: bytes, content_type: str, limits: Limits) -> Uploads:
    """The photos in a body. Raises RefusedError (400, 413 or 415) with what is wrong with it."""
    kind, options = parse_options_header(content_type)
    if not body:
        raise RefusedError(400, "the request is empty", KINDS)
    if kind == b"multipart/form-data":
        found = _multipart(body, options.get(b"boundary", b""), limits)
    elif kind == b"application/json":
        found = _json(body, limits)
    elif kind.startswith(b"image/") or kind in (b"application/octet-stream", b""):
        found = Uploads([Upload(None, body)], {})
    else:
        raise RefusedError(415, "the request's Content-Type is none that holds photos", KINDS)
    if not found.photos:
        raise RefusedError(400, "the request holds no photo", KINDS)
    return found


def _multipart(body: bytes, boundary: bytes, limits: Limits) -> Uploads:
    photos: list[Upload] = []
    values: dict[str, str] = {}
    header, value = bytearray(), bytearray()
    disposition, data = b"", bytearray()
    parts, ended = 0, False

    def begin() -> None:
        nonlocal parts, disposition
        parts += 1
        if parts > limits.files + OTHER_PARTS:
            raise too_many(limits)
        disposition = b""
        data.clear()

    def header_end() -> None:
        nonlocal disposition
        if header.lower() == b"content-disposition":
            disposition = bytes(value)
        header.clear()
        value.clear()

    def end() -> None:
        _, options = parse_options_header(disposition)
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field == FIELD:
            if len(photos) == limits.files:
                raise too_many(limits)
            photos.append(Upload(_name(options.get(b"filename")), bytes(data)))
        elif len(data) <= LONGEST_VALUE:
            values[field] = data.decode("utf-8", "replace")

    def the_end() -> None:
        nonlocal ended
        ended = True

    broken = RefusedError(400, "the multipart body is broken or cut off", "let a library make it, such as curl -F")
    if not boundary:
        raise broken
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": lambda source, start, stop: header.extend(source[start:stop]),
                "on_header_value": lambda source, start, stop: value.extend(source[start:stop]),
                "on_header_end": header_end,
                "on_part_data": lambda source, start, stop: data.extend(source[start:stop]),
                "on_part_end": end,
                "on_end": the_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeError, ValueError):
        raise broken from None
    if not ended:
        raise broken
    return Uploads(photos, values)


def _json(body: bytes, limits: Limits) -> Uploads:
    # Looked at before it is read: millions of values would take thirty times the body. Base64 has none of these signs.
    if body.count(b"[") + body.count(b"{") > MOST_BRACKETS:
        raise RefusedError(
            400, "the request is not JSON with one list of photos in base64", 'send {"photos": [base64, ...]}'
        )
    if body.count(b",") > limits.files + OTHER_PARTS:
        raise too_many(limits)
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):  # no JSON, no text, nested without end
        raise RefusedError(400, "the request is not JSON", 'send {"photos": [base64, ...]}') from None
    photos = found.get(FIELD) if isinstance(found, dict) else None
    if not isinstance(photos, list) or not all(isinstance(photo, str) for photo in photos):
        raise RefusedError(400, "the JSON has no list of photos in base64", 'send {"photos": [base64, ...]}')
    if len(photos) > limits.files:
        raise too_many(limits)
    try:
        uploads = [Upload(None, base64.b64decode(photo, validate=True)) for photo in photos]
    except (binascii.Error, ValueError):
        raise RefusedError(
            400, "a photo in the JSON is not base64", "encode the file's bytes, without a prefix"
        ) from None
    given = {name: found[name] for name in ("top", "model") if name in found}
    if not all(isinstance(value, (str, int)) for value in given.values()):
        raise RefusedError(400, "top must be a number and model a name", 'send {"photos": [base64, ...], "top": 5}')
    return Uploads(uploads, {name: str(value) for name, value in given.items()})


def too_many(limits: Limits) -> RefusedError:
    """The refusal of a request with more photos than the limit."""
    return RefusedError(
        413, f"the request has more than {counted(limits.files, 'photo')}", "send them in several requests"
    )


def _name(given: bytes | None) -> str | None:
    """A file's name as it may be shown: no folders, no control characters."""
    if not given:
        return None
    last = given.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:LONGEST_NAME] or None
