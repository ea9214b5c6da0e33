"""What the benchmarks beside other tools share: their environment, a fair order of runs, and what the figures are of.

The other tools live in an environment of their own, `.venv-peers` at the project's root, made when it is first needed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from handlens import bundle
from handlens.cost.latency import processor
from handlens.export import converting
from handlens.train.judge import versions

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers"
OWN_PYTHON = os.environ.get("HANDLENS_PEERS") == "here"
PACKAGES = ("timm>=1.0.31,<1.1", "torch>=2.14,<2.15", "torchvision==0.29.*", "onnxruntime>=1.31,<2", "safetensors")


def peers_python() -> str:
    """The interpreter of the peers' environment. Raises SystemExit, in a sentence, when it cannot be made."""
    if OWN_PYTHON:
        return sys.executable
    python = PEERS / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = PEERS / ".ready"
    if not ready.exists():
        print("installing the other tools into .venv-peers: some gigabytes, once", file=sys.stderr)
        venv.create(PEERS, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *PACKAGES]
        if subprocess.run(command).returncode:
            raise SystemExit(f"the other tools could not be installed: {' '.join(command)}")
        ready.touch()
    return str(python)


def have_peers() -> bool:
    """Whether the other tools are there or can be installed; if not, it is said, and their rows are left empty.

    With HANDLENS_PEERS=here they are those of this Python: for machines that cannot install anything.
    """
    try:
        peers_python()
    except (SystemExit, OSError, subprocess.SubprocessError) as error:
        print(f"{error}: their rows are left empty", file=sys.stderr)
        return False
    return True


def peer(script: str, settings: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What a script of benchmarks/peers prints as JSON, run in the peers' environment with so many threads."""
    return _run([peers_python(), str(ROOT / "benchmarks" / "peers" / script)], settings, threads)


def own(script: str, settings: Mapping[str, Any], threads: int = 0) -> dict[str, Any]:
    """The same of a script of ours, in this environment; threads wait as they do under the command line (cli.main)."""
    return _run([sys.executable, str(ROOT / "benchmarks" / "peers" / script)], settings, threads, GOMP_SPINCOUNT="1000")


def _run(command: Sequence[str], settings: Mapping[str, Any], threads: int, **more: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "ignore", **more}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run([*command, json.dumps(settings)], capture_output=True, env=environment, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def in_turn(
    kinds: Mapping[str, Callable[[], dict[str, Any]]], rounds: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, Any]]]:
    """Run each kind once a round, A B C A B C; photos/s of each (median, least, greatest), and its last answer."""
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    last: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        for name, run in kinds.items():
            last[name] = run()
            rates[name].append(last[name]["photos"] / last[name]["seconds"])
            print(f"  round {number + 1}: {name} {rates[name][-1]:.1f} photos/s", file=sys.stderr, flush=True)
    summary = {
        name: {"median": statistics.median(seen), "least": min(seen), "greatest": max(seen), "runs": len(seen)}
        for name, seen in rates.items()
    }
    return summary, last


def best_settings(
    run: Callable[[int, int], dict[str, Any]], workers: Sequence[int] = (0, 1, 2, 3), most_threads: int = 2
) -> tuple[int, int]:
    """The (workers, threads) with which a peer is fastest on a few photos."""
    cores = os.cpu_count() or 1
    tried = {
        (count, threads): (found := run(count, threads))["photos"] / found["seconds"]
        for count in workers
        for threads in sorted({1, min(most_threads, cores)})
    }
    return max(tried, key=lambda settings: tried[settings])


def machine() -> dict[str, Any]:
    """What the figures are of: processor, cores, versions, commit, date."""
    commit = ""
    with contextlib.suppress(OSError):  # a machine that was lent may have no git
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ).stdout.strip()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": processor(), "cores": os.cpu_count(), "load_before": load, "versions": all_versions(),
        "commit": commit, "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip


def all_versions() -> dict[str, str]:
    """Of what trains and of what makes and runs the exported files, as far as it is installed."""
    found = versions()
    for to in bundle.RUNTIMES:
        found |= converting.versions(to, int8=True)
    return found


def photos_below(folder: str, count: int) -> list[str]:
    """Evenly chosen photos of a folder, in the order of their names."""
    found = sorted(str(path) for path in Path(folder).rglob("*.jp*g"))
    if not found:
        raise SystemExit(f"there is no JPEG photo in {folder}")
    step = max(1, len(found) // count) if count else 1
    return found[::step][: count or None]
