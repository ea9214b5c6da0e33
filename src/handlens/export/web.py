"""A static site that classifies in the browser itself: the page, the model, and onnxruntime-web's files."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from handlens import export, files
from handlens.bundle import Bundle
from handlens.errors import HandlensError
from handlens.export.onnx import FILE

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = (  # of the package's archive, as npm's registry states it
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
PACKED_LIMIT_BYTES = 1 << 30
ENGINES = (  # in the order in which the page tries them: name, script, and what the script loads
    ("webgpu", "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify"),
    ("wasm", "ort.wasm.min.mjs", "ort-wasm-simd-threaded"),
)
_UNFILLED = 'const SITE = { version: "", files: [], more: [] };'
_NOTICE = """The files here are from the npm package {package} {version}, https://onnxruntime.ai,
Copyright (c) Microsoft Corporation, MIT License.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """A folder that any web server can serve.

    size_bytes: by part: "page", "model" and "runtime"; a browser fetches one engine's files of the runtime.
    """

    path: Path
    version: str
    size_bytes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"site": str(self.path), "version": self.version, "size_bytes": self.size_bytes}


def write(out: str | os.PathLike[str], bundle: Bundle, name: str, runtime: str | os.PathLike[str]) -> Site:
    """Write the site of an ONNX bundle; `runtime` is a folder with onnxruntime-web's files, as `runtime_files` gives.

    Raises HandlensError when `out` exists, when the bundle is for another runtime, and when a file is missing.
    """
    check_bundle(bundle)
    if os.path.lexists(out):
        raise HandlensError(f"{out} exists already", "choose another --out or remove it")
    engines = _engines(bundle.precision)
    model = bundle.artifact[FILE]
    page = _page()
    ort = {_in_site(name): _read(Path(runtime, name)) for name in _members(engines)}
    ort["ort/NOTICE.txt"] = _NOTICE.format(package=PACKAGE, version=VERSION).encode()
    facts: dict[str, Any] = {
        "name": name,
        "version": hashlib.sha256(model).hexdigest()[:12],
        "net": bundle.net,
        "runtime": PACKAGE,
        "precision": bundle.precision,
        "classes": list(bundle.classes),
        "preprocess": bundle.preprocess.to_dict(),
        "rejection": bundle.rejection,
        "card": {key: value for key, value in bundle.card.items() if key not in ("parity", "ladder")},
        "handlens_version": bundle.handlens_version,
        "engines": [
            {"name": engine, **{part: _in_site(name) for part, name in _parts(script, binary).items()}}
            for engine, script, binary in engines
        ],
        "check": _answers(model, bundle.preprocess.image_px),
        "files": {
            member: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
            for member, content in sorted({FILE: model, **ort}.items())
        },
    }
    whole = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for member, content in sorted(page.items()):
        whole.update(f"{member} {len(content)}\n".encode() + content)
    facts["site_version"] = whole.hexdigest()[:12]  # names the offline cache: another one when any file is another
    site = {**page, **ort, FILE: model, "site.json": json.dumps(facts, ensure_ascii=False, indent=1).encode()}
    more = [member for member in ort if member in map(_in_site, _members(ENGINES[:1]))]
    offline = sorted(site.keys() - {"sw.js", "ort/NOTICE.txt", *more})
    listed = json.dumps({"version": facts["site_version"], "files": offline, "more": more})
    site["sw.js"] = _filled(site["sw.js"], _UNFILLED, f"const SITE = {listed};")
    with files.atomic_folder(out) as folder:
        for member, content in site.items():
            path = folder / member
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    return Site(
        path=Path(out),
        version=facts["version"],
        size_bytes={
            "page": sum(len(site[member]) for member in (*page, "site.json")),
            "model": len(model),
            "runtime": sum(map(len, ort.values())),
        },
    )


def check_bundle(bundle: Bundle) -> None:
    """Raise HandlensError for a bundle that no browser runs."""
    if bundle.runtime != "onnx":
        raise HandlensError(f"a browser runs ONNX, this bundle is for {bundle.runtime}", "export the run with --to web")


def _engines(precision: str) -> tuple[tuple[str, str, str], ...]:
    return ENGINES[1:] if precision == "int8" else ENGINES  # WebGPU has no 8-bit kernels


def _members(engines: tuple[tuple[str, str, str], ...]) -> list[str]:
    """The names of engines' files."""
    return [name for _, script, binary in engines for name in _parts(script, binary).values()]


def _parts(script: str, binary: str) -> dict[str, str]:
    """An engine's files: the script, and what it loads."""
    return {"script": script, "glue": f"{binary}.mjs", "wasm": f"{binary}.wasm"}


def _in_site(name: str) -> str:
    """Where a file is in a site. Web servers know .js; many do not know .mjs, and browsers then refuse the script."""
    return "ort/" + name.replace(".mjs", ".js")


def _page() -> dict[str, bytes]:
    """The page's own files, told that the browser is the engine."""
    folder = resources.files("handlens") / "page"
    found = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
    found["index.html"] = _filled(
        found["index.html"],
        '<meta name="handlens-engine" content="service">',
        '<meta name="handlens-engine" content="browser">',
    )
    return found


def _filled(content: bytes, place: str, value: str) -> bytes:
    assert content.count(place.encode()) == 1, place
    return content.replace(place.encode(), value.encode())


def _answers(model: bytes, px: int) -> list[float]:
    """The probabilities of one fixed tensor, with which the page checks its engine: `pattern` in local.js."""
    index = np.arange(3 * px * px)
    pixels = ((index * 37 + (index >> 8) * 11) & 255).astype(np.uint8).reshape(1, px, px, 3)
    probabilities, _ = export.runner("onnx", 1)({FILE: model})(pixels)
    return [round(float(value), 6) for value in probabilities[0]]


# ---- onnxruntime-web -------------------------------------------------------------------------------------------------
def runtime_files(given: str | os.PathLike[str] | None = None, precision: str = "float32") -> Path:
    """A folder with onnxruntime-web's files: the `given` one, or the npm package's, fetched once and kept.

    Raises HandlensError when the given folder lacks one that a site of this precision has, when npm is not installed
    or cannot fetch the package, and when what it fetched is another package than the pinned one.
    """
    if given is not None:
        folder = Path(given, "dist") if Path(given, "dist").is_dir() else Path(given)
        lacking = [name for name in _members(_engines(precision)) if not (folder / name).is_file()]
        if lacking:
            raise HandlensError(
                f"{folder} holds no {lacking[0]}", f"give the folder `dist` of the npm package {PACKAGE}@{VERSION}"
            )
        return folder
    kept = files.cache_folder() / "npm" / f"{PACKAGE}-{VERSION}"
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
            archive = _pack(Path(temporary))
            unpacked = files.extract(archive, Path(temporary, "unpacked"), PACKED_LIMIT_BYTES) / "package" / "dist"
            with files.atomic_folder(kept) as folder:
                for member in _members(ENGINES):
                    shutil.copyfile(unpacked / member, folder / member)
    return kept


def _pack(folder: Path) -> Path:
    """The package's archive, fetched by npm into `folder` and compared with its hash."""
    wanted = f"{PACKAGE}@{VERSION}"
    elsewhere = f"or give --runtime-files the folder `dist` of {wanted}"
    npm = shutil.which("npm")
    if npm is None:
        raise HandlensError(
            f"the page needs {wanted}, which npm fetches, and npm is not installed", f"install Node.js, {elsewhere}"
        )
    command = [npm, "pack", wanted, "--ignore-scripts", "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=600, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise HandlensError(f"npm did not fetch {wanted} in ten minutes", f"try again, {elsewhere}") from None
    found = list(folder.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["it gave no reason"]
        raise HandlensError(f"npm could not fetch {wanted} ({lines[0][:200]})", f"check the connection, {elsewhere}")
    with found[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    if base64.b64encode(digest).decode() != SHA512:
        raise HandlensError(f"npm fetched another {wanted} than the one that was tested", "do not use it; try again")
    return found[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise HandlensError(f"{path} does not exist", f"give the folder `dist` of {PACKAGE}@{VERSION}") from None
