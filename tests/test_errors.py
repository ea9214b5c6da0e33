"""One sentence, and what to do next."""

from __future__ import annotations

from handlens.errors import HandlensError, PhotoError, missing_extra


def test_message_and_hint_make_one_line() -> None:
    assert str(HandlensError("the width is 0", "give one above 0")) == "the width is 0; give one above 0"
    assert str(HandlensError("the width is 0")) == "the width is 0"


def test_photo_errors_can_be_caught_as_ours() -> None:
    assert issubclass(PhotoError, HandlensError)


def test_missing_extra_names_the_install_command() -> None:
    assert "pip install 'handlens[evaluate]'" in str(missing_extra("evaluate", "jinja2"))
    assert "jinja2" in str(missing_extra("evaluate", "jinja2"))
