"""Standard output is for answers, standard error for everything else."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from handlens.cli import screen


def test_json_of_everything_that_rooms_return(capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_json(
        {
            "nan": float("nan"),
            "inf": np.float32("inf"),
            "array": np.array([1.5, np.nan]),
            "path": Path("a"),
            1: (2, None),
            "花": "🌼",
        }
    )
    out, err = capsys.readouterr()
    assert json.loads(out) == {"nan": None, "inf": None, "array": [1.5, None], "path": "a", "1": [2, None], "花": "🌼"}
    assert "花" in out
    assert err == ""


@pytest.mark.parametrize("text", ["🌼", "not text \udc80"])
def test_json_through_a_narrow_code_page(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    screen.print_json([text])
    stream.seek(0)
    assert json.loads(stream.read()) == [text]


@pytest.mark.parametrize(("encoding", "written"), [("cp1252", "\\u00e4"), ("utf-8", "ä"), ("UTF8", "ä")])
def test_json_is_utf_8_or_ascii(monkeypatch: pytest.MonkeyPatch, encoding: str, written: str) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=encoding))
    screen.print_json(["ä"])
    assert json.loads(content.getvalue()) == ["ä"]  # a code page's own ä is no JSON
    assert written.encode() in content.getvalue()


def test_a_table_has_no_colours_on_a_console_that_knows_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen.table("Title", ("name",), [("a",)])
    assert "\x1b" not in capsys.readouterr().out


def test_a_table_is_plain_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen.table("Title", ("name", "share"), [("[bold]<script>", "9.5 %"), ("花朵", None), ("x" * 150, "12.0 %")])
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0] == "Title"
    assert lines[2].startswith("[bold]<script> ")
    assert lines[3] == "花朵"
    assert lines[4].startswith("x" * 150)  # never cut
    assert lines[2].endswith("   9.5 %")
    assert lines[4].endswith("  12.0 %")  # numbers stand at the right


def test_a_table_on_a_terminal_has_rules(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    screen.table("", ("name",), [("a",)])
    assert "─" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "40"])
def test_names_and_numbers_are_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", columns)
    name, text = "mobilenet_v3_large_minimalistic", "a source of several words, in a file of that name"
    screen.table("", ("network", "parameters, M", "where from"), [(name, "2,709,504", text), ("花", "1", None)])
    shown = capsys.readouterr().out
    assert name in shown and "2,709,504" in shown
    assert text not in shown and "several" in shown


def test_paths_are_whole_where_the_rest_of_a_table_can_give_the_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    path, meaning = "tulips/a-photo-with-a-long-name.jpg", "the same photo in two classes, as copies are"
    screen.table("", ("found", "times", "the first", "meaning"), [("label-conflict", 1, f"{path} (both)", meaning)])
    lines = capsys.readouterr().out.splitlines()
    assert any(path in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_progress_is_silent_for_short_work_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.progress("reading") as update:
        update(1, 2)
        update(2, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_is_a_line_now_and_then_for_long_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    with screen.progress("reading", 9) as update:
        for done in range(1, 10):
            update(done, 9)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "reading: 1 of 9" or err.splitlines()[0] == "reading: 2 of 9"
    assert 2 <= len(err.splitlines()) < 9


def test_progress_on_a_terminal_is_a_bar_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with screen.progress("read [b]ing") as update:
        update(3, 9)
        update(9, 9)
    out, err = capsys.readouterr()
    assert out == ""
    assert "read [b]ing" in err
    assert "9/9" in err
    assert "/s" in err


def test_the_rate_counts_from_where_the_work_began(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: clock[0])
    with screen.progress("reading") as update:
        update(9000, 10_000)
        clock[0] = 10.0
        update(9020, 10_000)
    shown = capsys.readouterr().err
    assert "2.0/s" in shown and "left 0:08:10" in shown
    with screen.progress("training") as update:
        update(9000, 10_000)
        clock[0] = 20.0
        update(9020, 10_000, rate="loss 0.5, 7 photos/s", left_s=3723.4)
    shown = capsys.readouterr().err
    assert "loss 0.5, 7 photos/s" in shown and "left 1:02:03" in shown


def test_a_line_tells_rate_and_time_left_where_they_are_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "SECONDS_BETWEEN_LINES", 0.0)
    with screen.progress("training", 40) as update:
        update(12, 40, rate="7 photos/s", left_s=65)
        update(13)
    assert capsys.readouterr().err.splitlines() == [
        "training: 12 of 40, 7 photos/s, 0:01:05 left", "training: 13 of 40",
    ]  # fmt: skip


def test_no_work_no_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with screen.progress("downloading"):
        pass
    assert capsys.readouterr().err.strip() == ""


def test_notes_go_to_standard_error_whatever_they_hold(capsys: pytest.CaptureFixture[str]) -> None:
    screen.note("名 \udc80")
    screen.say("answer")
    assert capsys.readouterr() == ("answer\n", "名 \\udc80\n")


def test_names_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen.table("in \x1b[2J", ("a\rb",), [("two\nlines\t\x1b]0;x\x07",), ("\x9b1m é",)])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        r"in \x1b[2J", r"a\rb", r"two\nlines\t\x1b]0;x\x07", r"\x9b1m é",
    ]  # fmt: skip
    screen.say("one\n\ttwo \x1b[2J\x7f")
    screen.note("\rgone")
    assert capsys.readouterr() == ("one\n\ttwo \\x1b[2J\\x7f\n", "\\rgone\n")


def test_a_bars_label_does_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with screen.progress("a\x1b]0;x") as update:
        update(1, 2)
    shown = capsys.readouterr().err
    assert r"a\x1b]0;x" in shown and "\x1b]" not in shown
    assert "\x1b[" in shown  # the bar's own
