"""One sentence, and what to do next."""

from __future__ import annotations

import pytest

from handlens.errors import HandlensError, PhotoError, counted, missing_extra, not_one_of, quoted


def test_message_and_hint_make_one_line() -> None:
    assert str(HandlensError("the width is 0", "give one above 0")) == "the width is 0; give one above 0"
    assert str(HandlensError("the width is 0")) == "the width is 0"


def test_photo_errors_can_be_caught_as_ours() -> None:
    assert issubclass(PhotoError, HandlensError)


def test_missing_extra_names_the_install_command() -> None:
    assert 'pip install "handlens[evaluate]"' in str(missing_extra("evaluate", "jinja2"))
    assert "jinja2" in str(missing_extra("evaluate", "jinja2"))


def test_numbers_agree_with_their_nouns() -> None:
    assert [counted(number, "photo") for number in (0, 1, 1200)] == ["0 photos", "1 photo", "1,200 photos"]
    assert [counted(number, "class") for number in (1, 2)] == ["1 class", "2 classes"]


def test_a_word_that_is_none_of_a_few_is_told_the_nearest() -> None:
    modes = ("full", "last", "head")
    assert str(not_one_of("mode", "HAED", modes)) == "mode is 'HAED', expected full, last or head; did you mean head?"
    assert str(not_one_of("mode", "xyz", modes)) == "mode is 'xyz', expected full, last or head"
    assert str(not_one_of("mode", None, modes)) == "mode is None, expected full, last or head"
    assert str(not_one_of("mode", "ful", ("full",))) == "mode is 'ful', expected full; did you mean full?"


@pytest.mark.parametrize(("system", "path", "typed"), [
    ("posix", "runs/a", "runs/a"),
    ("posix", "my runs/it's", "'my runs/it'\"'\"'s'"),
    ("nt", r"C:\runs\a", r"C:\runs\a"),
    ("nt", r"C:\my runs\a", r'"C:\my runs\a"'),
])  # fmt: skip
def test_a_path_in_a_command_is_quoted_as_the_system_wants_it(
    system: str, path: str, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("handlens.errors.os.name", system)
        found = quoted(path)
    assert found == typed
