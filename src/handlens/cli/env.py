"""`handlens env`: what is installed here, and what this machine can do."""

from __future__ import annotations

from typing import Any

import typer

PACKAGES = ("numpy", "pillow", "safetensors", "torch", "lightning-fabric", "scikit-learn", "scipy", "matplotlib")
RUNTIMES = {
    "torch": "torch",
    "onnx": "onnxruntime",
    "litert": "ai-edge-litert",
    "executorch": "executorch",
    "openvino": "openvino",
}
FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "neon",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
)


def env(json: bool = typer.Option(False, "--json", help="One JSON value on standard output.")) -> None:
    """Show what is installed and what this machine has.

    Versions, optional parts, runtimes, the processor, threads, and the device that training would use.

    \b
    Examples:
      handlens env
      handlens env --json
    """
    from handlens.cli import screen

    facts = describe()
    if json:
        screen.print_json(facts)
        return
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [(f"{name}: {key}", _words(member)) for key, member in value.items()]
        else:
            lines.append((name, _words(value)))
    screen.table("", ("what", "here"), lines)


def describe() -> dict[str, Any]:
    """Versions, extras, runtimes, CPU, threads and devices, as JSON-ready values; None for what is not installed."""
    import platform
    import sys

    import handlens
    from handlens import cores, files
    from handlens.cost.latency import processor

    return {
        "handlens": handlens.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "executable": sys.executable,
        "versions": versions(),
        "extras": _extras(),
        "runtimes": {name: _version(package) is not None for name, package in RUNTIMES.items()},
        "cpu": processor(),
        "cpu_flags": _cpu_flags(),
        "cpu_threads": cores.available(),
        **_torch(),
        "cache": str(files.cache_folder()),
    }


def versions() -> dict[str, str | None]:
    """The installed versions of the packages that figures depend on; None for what is not installed."""
    return {package: _version(package) for package in dict.fromkeys((*PACKAGES, *RUNTIMES.values()))}


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> dict[str, bool]:
    """Whether all packages of each optional part are installed, as handlens's own metadata lists them.

    One that there is not for this system is missing, too: without it the part cannot do its work.
    """
    import re
    from importlib import metadata

    extras: dict[str, bool] = {}
    parts: list[tuple[str, str]] = []  # an extra, and one that is a part of it
    for line in metadata.requires("handlens") or []:
        if found := re.fullmatch(r"([\w.-]+)(?:\[([^]]*)\])?.*?; *(?:.* and +)?extra == ['\"]([\w-]+)['\"]", line):
            package, inner, extra = found.groups()
            extras[extra] = extras.get(extra, True) and _version(package) is not None
            parts += [(extra, name) for name in (inner or "").split(",") if package == "handlens"]
    for _ in extras:  # a part of a part of a part
        for extra, part in parts:
            extras[extra] = extras[extra] and extras.get(part, True)
    return extras


def _torch() -> dict[str, Any]:
    """torch's threads and the devices it finds; it is imported only if it is installed."""
    if _version("torch") is None:
        return {"torch_threads": None, "device": None}
    import torch

    from handlens.run.torch_runtime import default_device

    device = default_device().type
    if device == "cuda":
        device += f" ({torch.cuda.device_count()} x {torch.cuda.get_device_name()})"
    return {"torch_threads": torch.get_num_threads(), "device": device}


def _cpu_flags() -> list[str]:
    """Those of the processor's instruction sets that networks profit from; only Linux tells them."""
    from pathlib import Path

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    told = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return [flag for flag in FLAGS if flag in told]


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)
