"""`handlens export --to web`: what is in the folder, and what is refused. tests/page opens it in a browser."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from handlens import bundle
from handlens.cli import app
from handlens.errors import HandlensError
from handlens.export import web
from handlens.preprocess import Preprocess


@pytest.fixture
def ort(tmp_path: Path) -> Path:
    """Files with the names of onnxruntime-web's."""
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    for _, script, binary in web.ENGINES:
        for name in (script, f"{binary}.mjs", f"{binary}.wasm"):
            (folder / "dist" / name).write_text(name)
    return folder


def export(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=True)
    if done.exception and not isinstance(done.exception, SystemExit):
        return 2, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def test_a_bundle_becomes_a_site(tiny: ModuleType, ort: Path, tmp_path: Path) -> None:
    bundle.write(tmp_path / "colours.zip", tiny.bundle())
    out = tmp_path / "site"
    code, stdout, errors = export(
        tmp_path / "colours.zip", "--to", "web", "--out", out, "--runtime-files", ort, "--json"
    )
    assert code == 0, errors
    site = json.loads((out / "site.json").read_text("utf-8"))
    assert json.loads(stdout)["version"] == site["version"] and site["name"] == "colours"
    assert site["classes"] == list(tiny.CLASSES)
    assert Preprocess.from_dict(site["preprocess"]) == tiny.PREPROCESS
    assert sum(site["check"]) == pytest.approx(1, abs=1e-4)
    for name, entry in site["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == entry["sha256"], name
    assert 'name="handlens-engine" content="browser"' in (out / "index.html").read_text("utf-8")
    listed = json.loads(re.findall(r"^const SITE = (.*);", (out / "sw.js").read_text("utf-8"), re.M)[0])
    assert listed["version"] == site["site_version"]
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {*listed["files"], *listed["more"], "sw.js", "ort/NOTICE.txt"} == there
    assert not [name for name in there if name.endswith(".mjs")]  # servers that do not know it send it as no script
    assert all({engine[part] for part in ("script", "glue", "wasm")} <= there for engine in site["engines"])
    assert {name for name in listed["files"] if name.startswith("ort/")} == {
        "ort/ort.wasm.min.js",
        "ort/ort-wasm-simd-threaded.js",
        "ort/ort-wasm-simd-threaded.wasm",
    }
    for path in out.rglob("*"):  # namespaces and the sources of onnxruntime are named, nothing is fetched
        if path.suffix in (".js", ".html", ".css", ".json"):
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text("utf-8")), path
    code, _, errors = export(tmp_path / "colours.zip", "--to", "web", "--out", out, "--runtime-files", ort)
    assert code == 2 and "exists already" in errors
    for name in ("an other.zip", "an other.ZIP"):
        zipped = tmp_path / name
        code, _, errors = export(tmp_path / "colours.zip", "--to", "web", "--out", zipped, "--runtime-files", ort)
        assert code == 2 and not zipped.exists()
        assert errors == f"--to web makes a folder, and {zipped} names a zip; give one: --out '{tmp_path / 'an other'}'"


def test_another_file_makes_another_offline_version(
    tiny: ModuleType, ort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(out: str) -> str:
        web.write(tmp_path / out, tiny.bundle(), "colours", ort / "dist")
        return str(json.loads((tmp_path / out / "site.json").read_text("utf-8"))["site_version"])

    first = version("a")
    assert version("b") == first
    page = web._page()
    monkeypatch.setattr(web, "_page", lambda: {**page, "style.css": b"body {}"})
    assert version("c") != first


def test_what_cannot_be_made(tiny: ModuleType, ort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HandlensError, match="a browser runs ONNX, this bundle is for litert"):
        web.write(tmp_path / "site", tiny.bundle("litert"), "colours", ort / "dist")
    (ort / "dist" / "ort-wasm-simd-threaded.wasm").unlink()
    with pytest.raises(HandlensError, match=r"ort-wasm-simd-threaded\.wasm does not exist"):
        web.write(tmp_path / "site", tiny.bundle(), "colours", ort / "dist")
    with pytest.raises(HandlensError, match=r"holds no ort\.webgpu\.min\.mjs; give the folder `dist`"):
        web.runtime_files(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(HandlensError, match=r"which npm fetches, and npm is not installed; .* --runtime-files"):
        web.runtime_files()
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_runtime_that_lacks_a_file_is_told_before_any_work(
    precision: str, ort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlens.compress.export", lambda *_, **__: pytest.fail("the work was begun"))
    options = ["--int8"] if precision == "int8" else []
    (ort / "dist" / "ort.webgpu.min.mjs").unlink()
    assert web.runtime_files(ort, "int8") == ort / "dist"  # which it has no use for
    lacking = "ort-wasm-simd-threaded.wasm" if precision == "int8" else "ort.webgpu.min.mjs"
    (ort / "dist" / "ort-wasm-simd-threaded.wasm").unlink()
    out = tmp_path / "site"
    code, _, errors = export(tmp_path / "run", "--to", "web", *options, "--out", out, "--runtime-files", ort)
    assert code == 2 and f"holds no {lacking}; give the folder `dist`" in errors
    assert not out.exists()


def test_a_bundle_for_another_runtime_is_told_before_anything_is_fetched(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_pack", lambda *_: pytest.fail("it was fetched"))
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    bundle.write(tmp_path / "b.zip", tiny.bundle("litert"))
    code, _, errors = export(tmp_path / "b.zip", "--to", "web", "--out", tmp_path / "site")
    assert code == 2 and "a browser runs ONNX, this bundle is for litert" in errors


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 'npm error code E404' >&2; exit 1", r"npm could not fetch .* \(npm error code E404\)"),
        ("touch onnxruntime-web-1.30.0.tgz", "npm fetched another onnxruntime-web@1.30.0 than the one that was tested"),
    ],
)
def test_a_package_that_is_not_the_pinned_one(
    script: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(HandlensError, match=sentence):
        web.runtime_files()
