"""What all commands share: start-up, errors, exit codes, suggestions."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import handlens
from handlens import cli
from handlens.errors import HandlensError

COMMANDS = [command.name for command in cli.app.registered_commands]
Run = Callable[..., tuple[int, str, str]]


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    heavy = ("torch", "torchvision", "numpy", "PIL", "matplotlib", "lightning_fabric", "rich", "sklearn", "jinja2")
    code = (
        "import sys, time, handlens.cli\n"
        "sys.argv = ['handlens', '--help']\n"
        "try: handlens.cli.main()\n"
        f"finally: print([name for name in {heavy!r} if name in sys.modules], time.process_time(), file=sys.stderr)"
    )
    found = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(3)]
    assert all(run.returncode == 0 and run.stderr.startswith("[] ") for run in found), found[0].stderr
    bare = [sys.executable, "-c", "import time, typer; print(time.process_time())"]
    typer_s = min(float(subprocess.run(bare, capture_output=True, text=True).stdout) for _ in range(3))
    seconds = min(float(run.stderr.split()[-1]) for run in found)  # the quickest: the machine may be busy
    assert seconds < max(0.15, 2 * typer_s)  # or slow: most of it is typer


@pytest.mark.parametrize("policy", ["", "active"])
def test_waiting_threads_spin_a_little(command: Run, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": policy} if policy else {})
    command("--version")
    assert os.environ.get("GOMP_SPINCOUNT") == (None if policy else "1000")
    assert os.environ["OPENBLAS_THREAD_TIMEOUT"] == "20"


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, handlens; print([n for n in ('torch', 'numpy', 'PIL', 'matplotlib') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_lists_every_command(command: Run) -> None:
    code, out, _ = command("--help")
    assert code == 0
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert {"nets", "train", "evaluate", "predict", "env"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_and_json(command: Run, name: str) -> None:
    code, out, _ = command(name, "--help")
    assert code == 0
    assert f"\n    handlens {name}" in out
    assert "--json" in out or name == "serve"  # whose answers and log lines are JSON in any case


def test_version(command: Run) -> None:
    assert command("--version") == (0, f"handlens {handlens.__version__}\n", "")


def test_the_module_is_the_command() -> None:
    found = subprocess.run([sys.executable, "-m", "handlens", "--version"], capture_output=True, text=True)
    assert found.stdout == f"handlens {importlib.metadata.version('handlens')}\n"


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["evalute", "run"], "there is no command evalute; did you mean evaluate?"),
        (["predict", "run", "photo", "--min-probabilty", "1"], "did you mean --min-probability?"),
        (["nets", "--famly", "x"], "handlens nets has no option --famly; did you mean --family?"),
    ],
)
def test_did_you_mean(command: Run, arguments: list[str], suggestion: str) -> None:
    code, out, err = command(*arguments)
    assert code == 2
    assert out == ""
    assert suggestion in err


@pytest.mark.parametrize(
    "arguments",
    [["predict"], ["predict", "run", "photo", "--top", "0"], ["predict", "run", "x", "--min-probability", "2"]],
)
def test_wrong_usage_is_a_sentence_and_exit_code_2(command: Run, arguments: list[str]) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("handlens: ") and err.count("\n") == 1
    assert err.endswith("; `handlens predict --help` shows what it takes\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "x", "--epochs", "ten"], "--epochs is 'ten', expected a whole number; `handlens train --help`"),
        (["train", "x", "--lr", "fast"], "--lr is 'fast', expected a number; `handlens train --help`"),
        (["bench", "x", "--runs", "1"], "--runs is '1', expected at least 3; `handlens bench --help`"),
        (["serve", "--port", "99999"], "--port is '99999', expected at most 65535; `handlens serve --help`"),
        (["predict", "run"], "handlens predict needs PHOTO; `handlens predict --help`"),
        (
            ["train", "a", "b"],
            "handlens train was given more than it takes: b; put a path with spaces into quotes",
        ),
        (["train", "x", "--out"], "--out needs a value; give one: --out VALUE"),
        (["nets", "--json=1"], "--json takes no value; leave out what follows it"),
        (["nets", "-x"], "handlens nets has no option -x; `handlens nets --help`"),
        (["explain", "x", "--what", "grad"], "--what is 'grad', expected gradcam, rollout, "),
        (["xyzzy"], "there is no command xyzzy; `handlens --help` lists them"),
    ],
)
def test_what_was_typed_and_what_was_expected(command: Run, arguments: list[str], sentence: str) -> None:
    code, out, err = command(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"handlens: {sentence}")


def test_without_arguments_comes_the_help(command: Run) -> None:
    code, out, err = command()
    assert (code, out) == (2, "")
    assert err.startswith("Usage: handlens") and "learning-curve" in err


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_our_errors_are_one_line_and_exit_code_2(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlens.cli.env.describe", raising(HandlensError("a is\nb", "do 花")))
    assert command("env") == (2, "", "handlens: a is b; do 花\n")


def test_a_full_disk_is_a_sentence(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "model.bin")
    monkeypatch.setattr("handlens.cli.env.describe", raising(full))
    code, out, err = command("env")
    assert (code, out) == (2, "")
    assert err == "handlens: the disk is full: model.bin could not be written; free some space and try again\n"


def test_ctrl_c_is_exit_code_130_and_no_traceback(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlens.cli.env.describe", raising(KeyboardInterrupt()))
    code, _, err = command("env")
    assert code == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "Input/output error")])
def test_a_bug_shows_its_traceback(command: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("handlens.cli.env.describe", raising(error))
    with pytest.raises(type(error)):
        command("env")


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise on Windows")
def test_a_closed_pipe_is_quiet() -> None:
    code = (
        "import sys, handlens.cli, handlens.cli.env as env\n"
        "env.describe = lambda: {str(i): 'x' * 1000 for i in range(1000)}\n"
        "sys.argv = ['handlens', 'env', '--json']\n"
        "handlens.cli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() != 0


@pytest.mark.skipif(os.name == "nt", reason="there is no such shell on Windows")
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_closed_streams_are_no_matter(closed: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m handlens env {closed}"
    assert subprocess.run(["sh", "-c", command], capture_output=True).returncode == 0


def test_completion_scripts_can_be_shown() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "handlens", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert found.returncode == 0
    assert "complete" in found.stdout


def test_env(command: Run) -> None:
    code, out, _ = command("env", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["handlens"] == handlens.__version__
    assert facts["versions"]["numpy"] == importlib.metadata.version("numpy")
    assert facts["extras"]["train"] is True
    assert facts["runtimes"]["torch"] is True
    assert facts["cpu_threads"] >= 1
    assert facts["torch_threads"] >= 1
    assert isinstance(facts["device"], str)
    code, out, _ = command("env")
    assert code == 0
    assert importlib.metadata.version("torch") in out


def test_env_tells_of_the_device_that_training_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Apple's it is the processor."""
    import torch

    from handlens.cli import env

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    assert env.describe()["device"] == "cpu"


def test_env_without_torch(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from handlens.cli import env

    version = env._version
    monkeypatch.setattr(env, "_version", lambda package: None if package == "torch" else version(package))
    facts = env.describe()
    assert facts["versions"]["torch"] is None
    assert facts["extras"]["train"] is facts["runtimes"]["torch"] is False
    assert facts["device"] is None
    assert command("env")[0] == 0


def test_an_extra_is_there_when_all_of_its_parts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from handlens.cli import env

    lines = [
        "numpy>=2",
        'onnxruntime<2,>=1.31; extra == "onnx"',
        'handlens[onnx]; extra == "export-onnx"',
        'onnx>=1.23; extra == "export-onnx"',
        "handlens[export-coreml,export-onnx]; extra == 'export'",
        'coremltools>=9; sys_platform != "win32" and extra == "export-coreml"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    everything = {"onnx": True, "export-onnx": True, "export": True, "export-coreml": True}
    monkeypatch.setattr(env, "_version", lambda package: "1")
    assert env._extras() == everything
    monkeypatch.setattr(env, "_version", lambda package: None if package == "onnxruntime" else "1")
    assert env._extras() == everything | {"onnx": False, "export-onnx": False, "export": False}
    monkeypatch.setattr(env, "_version", lambda package: None if package == "coremltools" else "1")
    assert env._extras() == everything | {"export-coreml": False, "export": False}


def test_signal_in_a_real_process_ends_it_quietly(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import sys, time, pathlib, handlens.cli, handlens.cli.env as env\n"
        f"env.describe = lambda: (pathlib.Path({str(ready)!r}).touch(), time.sleep(30))\n"
        "sys.argv = ['handlens', 'env']\n"
        "handlens.cli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in err
