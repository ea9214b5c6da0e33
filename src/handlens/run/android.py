"""How long a LiteRT bundle takes on an Android phone, by LiteRT's own benchmark tool over adb."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from handlens.bundle import Bundle
from handlens.errors import HandlensError

FOLDER = "/data/local/tmp/handlens"  # on the phone; adb's shell may write and run files there
TOOL = "benchmark_model"
LONGEST_S = 300


class PhoneLatency(NamedTuple):
    """Milliseconds of one photo on the phone: mean over `runs`, as the tool reports it, and its first call."""

    mean_ms: float
    first_ms: float
    threads: int
    runs: int
    device: str


def measure(bundle: Bundle, tool: Path, threads: Sequence[int] = (1, 4), runs: int = 50) -> list[PhoneLatency]:
    """Push a LiteRT bundle's file and the tool to the phone that adb sees, and run the tool for each count of threads.

    tool: LiteRT's native `benchmark_model` for the phone's processor. Raises HandlensError for a bundle of another
    runtime, when there is no tool, no adb or no phone, and when the tool reports no time.
    """
    if bundle.runtime != "litert":
        raise HandlensError(
            f"this bundle is for {bundle.runtime}, a phone is measured with a LiteRT one",
            "make it with `handlens export RUN --to litert`",
        )
    if not tool.is_file():
        raise HandlensError(
            f"there is no file {tool}", "get the native benchmark_model for Android from LiteRT's page on measurement"
        )
    _adb("start-server")  # it tells of its start: here, not within what the phone says
    device = _adb("shell", "getprop", "ro.product.model").strip() or "unknown phone"
    _adb("shell", "mkdir", "-p", FOLDER)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.tflite")
        file.write_bytes(bundle.artifact["model.tflite"])
        _adb("push", str(file), f"{FOLDER}/model.tflite")
    _adb("push", str(tool), f"{FOLDER}/{TOOL}")
    _adb("shell", "chmod", "755", f"{FOLDER}/{TOOL}")
    return [parse(_adb("shell", *command(count, runs)), count, runs, device) for count in threads]


def command(threads: int, runs: int) -> list[str]:
    """What is run on the phone."""
    return [
        f"{FOLDER}/{TOOL}",
        f"--graph={FOLDER}/model.tflite",
        f"--num_threads={threads}",
        f"--num_runs={runs}",
        "--use_xnnpack=true",
    ]


def parse(report: str, threads: int, runs: int, device: str) -> PhoneLatency:
    """Read the tool's report: "Inference timings in us: ... First inference: 18535, ... Inference (avg): 14575".

    Raises HandlensError with the end of the report when it gives no time.
    """
    first = re.search(r"First inference: ([\d.e+]+)", report)
    mean = re.search(r"Inference \(avg\): ([\d.e+]+)", report)
    if not first or not mean:
        end = " ".join(report.split())[-200:]
        raise HandlensError(f"the benchmark tool reported no time: {end or 'nothing'}", "is it made for this phone?")
    return PhoneLatency(float(mean[1]) / 1000, float(first[1]) / 1000, threads, runs, device)


def _adb(*arguments: str) -> str:
    """Run adb; what it and the phone print."""
    try:
        done = subprocess.run(["adb", *arguments], capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except FileNotFoundError:
        raise HandlensError("adb was not found", "install Android's platform tools, and connect a phone") from None
    except subprocess.TimeoutExpired:
        raise HandlensError(
            f"adb {shlex.join(arguments)} took longer than {LONGEST_S} s", "is the phone awake?"
        ) from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:200]
        raise HandlensError(
            f"adb {arguments[0]} failed ({said})", "see `adb devices`: one phone, unlocked, must be there"
        )
    return done.stdout + done.stderr
