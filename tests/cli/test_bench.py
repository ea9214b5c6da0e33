"""`handlens bench`, here on a bundle and on a phone that is played by a script."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from handlens import bundle
from handlens.cli import app
from handlens.cli.bench import _compare
from handlens.errors import HandlensError
from handlens.preprocess import Preprocess
from handlens.run import android

REPORT = (
    "INFO: Inference timings in us: Init: 5685, First inference: 18535, Warmup (avg): 14462.3, Inference (avg): 14575.2"
)


@pytest.fixture
def phone_bundle(tmp_path: Path) -> Path:
    path = tmp_path / "flowers.zip"
    made = bundle.Bundle(
        runtime="litert",
        precision="int8",
        artifact={"model.tflite": b"any bytes: only the phone reads them"},
        net="mobilenet_v2",
        classes=("a", "b"),
        preprocess=Preprocess(),
        card={},
    )
    bundle.write(path, made)
    return path


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called adb that notes what it is told and answers as a phone with the tool would."""
    if os.name == "nt":
        pytest.skip("the stand-in for adb is a script with a shebang")
    folder, notes = tmp_path / "bin", tmp_path / "told.txt"
    folder.mkdir()
    script = folder / "adb"
    script.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        f"started = pathlib.Path({str(notes)!r}).exists()\n"
        f"with open({str(notes)!r}, 'a') as notes: print(*sys.argv[1:], file=notes)\n"
        "if sys.argv[1] == 'push' and sys.argv[2].endswith('.tflite'):\n"
        f"    pathlib.Path({str(tmp_path / 'pushed')!r}).write_bytes(pathlib.Path(sys.argv[2]).read_bytes())\n"
        "if not started: print('* daemon not running; starting now at tcp:5037', file=sys.stderr)\n"
        "if 'getprop' in sys.argv: print('Pixel 42')\n"
        f"if any('--graph' in word for word in sys.argv): print({REPORT!r})\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return notes


def test_a_phone_is_measured_by_its_own_tool(adb: Path, phone_bundle: Path, tmp_path: Path) -> None:
    (tool := tmp_path / "benchmark_model").write_bytes(b"for the phone")
    done = CliRunner().invoke(
        app, ["bench", str(phone_bundle), "--phone", "--tool", str(tool), "--threads", "1", "--threads", "4", "--json"]
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [(row["threads"], row["mean_ms"], row["first_ms"], row["device"]) for row in rows] == [
        (1, 14.5752, 18.535, "Pixel 42"),
        (4, 14.5752, 18.535, "Pixel 42"),
    ]
    told = adb.read_text().splitlines()
    assert f"push {tool} {android.FOLDER}/benchmark_model" in told
    assert any("--num_threads=4" in line and line.startswith("shell ") for line in told)
    assert (tmp_path / "pushed").read_bytes() == bundle.read(phone_bundle).artifact["model.tflite"]


def test_a_report_without_a_time_is_shown() -> None:
    with pytest.raises(HandlensError, match=r"reported no time: .*cannot execute: wrong architecture"):
        android.parse("sh: benchmark_model: cannot execute: wrong architecture", 1, 50, "a phone")


def test_without_adb(phone_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tool := tmp_path / "benchmark_model").write_bytes(b"")
    with pytest.raises(HandlensError, match="adb was not found; install Android's platform tools"):
        android.measure(bundle.read(phone_bundle), tool)


def test_a_failing_adb_is_quoted(adb: Path, phone_bundle: Path, tmp_path: Path) -> None:
    (adb.parent / "bin" / "adb").write_text("#!/bin/sh\necho 'error: no devices/emulators found' >&2\nexit 1\n")
    (tool := tmp_path / "benchmark_model").write_bytes(b"")
    with pytest.raises(HandlensError, match="no devices/emulators found"):
        android.measure(bundle.read(phone_bundle), tool)


def test_only_litert_goes_onto_a_phone(phone_bundle: Path, tmp_path: Path) -> None:
    import dataclasses

    other = dataclasses.replace(bundle.read(phone_bundle), runtime="onnx", artifact={"model.onnx": b""})
    with pytest.raises(HandlensError, match="this bundle is for onnx"):
        android.measure(other, tmp_path)


def test_without_the_tool(phone_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match=r"there is no file .*benchmark_model"):
        android.measure(bundle.read(phone_bundle), tmp_path / "benchmark_model")


def test_photos_at_once_are_not_for_a_phone(phone_bundle: Path) -> None:
    done = CliRunner().invoke(app, ["bench", str(phone_bundle), "--phone", "--batch", "8"])
    assert isinstance(done.exception, HandlensError)
    assert str(done.exception) == "--batch is for this machine, and --phone measures one photo; leave one of them out"


def test_all_are_looked_at_before_any_is_measured(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photo := tmp_path / "garden.jpg").write_bytes(b"")
    monkeypatch.setattr("handlens.cost.latency.measure", lambda *_: pytest.fail("measured"))
    done = CliRunner().invoke(app, ["bench", str(tiny_run), str(photo)])
    assert isinstance(done.exception, HandlensError)
    assert "garden.jpg is neither a run's folder nor a bundle" in str(done.exception)


def test_here_a_run_is_measured_for_each_count_of_threads(tiny_run: Path) -> None:
    done = CliRunner().invoke(
        app, ["bench", str(tiny_run), "--threads", "1", "--threads", "2", "--runs", "3", "--batch", "2", "--json"]
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [(row["threads"], row["runtime"], row["runs"]) for row in rows] == [(1, "torch", 3), (2, "torch", 3)]
    assert all(0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] and row["photos_per_s"] > 0 for row in rows)
    shown = CliRunner().invoke(app, ["bench", str(tiny_run), "--threads", "1", "--runs", "3", "--batch", "2"])
    assert "photos/s" in shown.stdout and "torch" in shown.stdout


@pytest.mark.parametrize(("ms", "said"), [(1.09, 0), (1.11, 1)])
def test_a_rounded_file_is_called_slower_where_that_is_no_chance(
    ms: float, said: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {"runtime": "onnx", "threads": 1}
    rows = [
        {"bundle": "f.zip", "precision": "float32", "median_ms": 1.0, **shared},
        {"bundle": "i.zip", "precision": "int8", "median_ms": ms, **shared},
    ]
    _compare(rows)
    assert capsys.readouterr().out.count("i.zip (int8) is slower here than f.zip (float32) with 1 thread") == said
