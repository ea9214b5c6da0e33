"""Photos out of the bodies of requests."""

from __future__ import annotations

import pytest

from handlens.serve import Limits
from handlens.serve.uploads import LONGEST_NAME, LONGEST_VALUE, Upload, parse

PHOTOS = b'Content-Disposition: form-data; name="photos"; filename="%s"\r\n'
TOP = b'Content-Disposition: form-data; name="top"\r\n'


def multipart(*parts: tuple[bytes, bytes]) -> bytes:
    """A body of parts, each (headers, content)."""
    return b"".join(b"--b\r\n" + headers + b"\r\n" + content + b"\r\n" for headers, content in parts) + b"--b--\r\n"


def parsed(*parts: tuple[bytes, bytes]) -> tuple[list[Upload], dict[str, str]]:
    found = parse(multipart(*parts), "multipart/form-data; boundary=b", Limits())
    return found.photos, found.values


def test_headers_of_a_part_come_in_any_order() -> None:
    kind = b"Content-Type: image/jpeg\r\n"
    photos, values = parsed((kind + PHOTOS % b"a.jpg", b"one"), (PHOTOS % b"b.jpg" + kind, b"two"), (TOP, b"2"))
    assert photos == [Upload("a.jpg", b"one"), Upload("b.jpg", b"two")]
    assert values == {"top": "2"}


def test_a_part_without_a_name_is_no_photo() -> None:
    photos, _ = parsed((PHOTOS % b"a.jpg", b"one"), (b"Content-Type: image/jpeg\r\n", b"two"))
    assert photos == [Upload("a.jpg", b"one")]


def test_a_field_too_long_for_a_value_is_left_out() -> None:
    photo = (PHOTOS % b"a.jpg", b"one")
    assert parsed(photo, (TOP, b"9" * LONGEST_VALUE))[1].keys() == {"top"}
    assert parsed(photo, (TOP, b"9" * (LONGEST_VALUE + 1)))[1] == {}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("a.jpg", "a.jpg"),
        ("../../etc/a.jpg", "a.jpg"),
        ("C:\\photos\\a.jpg", "a.jpg"),
        ("花.jpg", "花.jpg"),
        ("a\x1b[31m.jpg", "a[31m.jpg"),
        ("x" * 300, "x" * LONGEST_NAME),
        ("folder/", None),
    ],
)
def test_of_a_files_name_only_what_can_be_shown(given: str, name: str | None) -> None:
    ((photo,), _) = parsed((PHOTOS % given.replace("\\", "\\\\").encode(), b"one"))
    assert photo.name == name
