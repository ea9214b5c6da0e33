"""`handlens serve` on the command line: what it is told, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from handlens import bundle
from handlens import serve as serve_room
from handlens.cli.serve import names
from handlens.errors import HandlensError
from handlens.serve import Settings

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def serve(command: Callable[..., tuple[int, str, str]]) -> Run:
    """The command's exit code and standard error."""

    def called(*arguments: object) -> tuple[int, str]:
        code, _, err = command("serve", *arguments)
        return code, err

    return called


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """In place of serving: what would be served."""
    found: list[Settings] = []
    monkeypatch.setattr(serve_room, "run", found.append)
    return found


def test_the_options_arrive(serve: Run, told: list[Settings], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a-key-of-many-letters\n", encoding="utf-8-sig")  # as editors on Windows save it
    code, err = serve(
        "a.zip", "--bundle", "other=b.zip", "--host", "::1", "--port", 9000, "--threads", 2, "--keep", "kept",
        "--api-key-file", tmp_path / "key", "--max-body-mb", 2, "--max-megapixels", 1.5, "--max-files", 4,
        "--timeout-s", 3, "--queue", 8, "--wait-ms", 1,
    )  # fmt: skip
    assert (code, err) == (0, "")
    (settings,) = told
    assert settings.bundles == {"a": Path("a.zip"), "other": Path("b.zip")}
    assert (settings.host, settings.port, settings.threads, settings.keep) == ("::1", 9000, 2, Path("kept"))
    assert settings.api_key == "a-key-of-many-letters"
    limits = settings.limits
    assert (limits.body_bytes, limits.pixels, limits.files, limits.photos) == (2_000_000, 1_500_000, 4, 8)
    assert (limits.time_s, limits.wait_s) == (3, 0.001)


def test_loopback_without_a_key_by_default(serve: Run, told: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    serve("a.zip")
    assert (told[0].host, told[0].lan, told[0].api_key, told[0].keep) == ("127.0.0.1", False, "", None)
    monkeypatch.setenv("HANDLENS_API_KEY", "a-key-of-many-letters")
    serve("a.zip")
    assert told[1].api_key == "a-key-of-many-letters"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no bundle was named"),
        (["a.zip", "b/a.zip"], "two bundles are named a"),
        (["--bundle", "a.zip"], "is no NAME=PATH"),
        (["--bundle", "a b=a.zip"], "cannot be a model's name"),
        (["a.zip", "--api-key-file", "none"], "the API key in none cannot be read"),
        (["a.zip", "--tls-cert", "c.pem"], "a certificate and its key are needed together"),
        (["none.zip", "--port", "0"], "none.zip does not exist"),
        (["a.zip", "--max-files", "100"], "raise --queue or lower --max-files"),
        (["a.zip", "--max-body-mb", "inf"], "--max-body-mb is 'inf', expected at most"),
        (["a.zip", "--max-megapixels", "inf"], "--max-megapixels is 'inf', expected at most"),
        (["a.zip", "--timeout-s", "inf"], "--timeout-s is 'inf', expected at most"),
        (["a.zip", "--wait-ms", "nan"], "--wait-ms is 'nan', expected at"),
    ],
)
def test_one_sentence(
    serve: Run, arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, err = serve(*arguments)
    assert code == 2
    assert sentence in err and err.count("\n") == 1


def test_a_bundle_that_fails_its_golden_photos(serve: Run, tiny: ModuleType, tmp_path: Path) -> None:
    swapped = tuple(
        bundle.Golden(photo=tiny.golden(index).photo, probabilities=tiny.golden(1 - index).probabilities)
        for index in range(2)
    )
    bundle.write(tmp_path / "b.zip", tiny.bundle(golden=swapped))
    code, err = serve(tmp_path / "b.zip", "--port", 0, "--threads", 1)
    assert code == 2
    assert "2 of its 2 golden photos" in err and "golden/0.jpg" in err and "golden/1.jpg" in err


def test_a_missing_part_is_named(serve: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    code, err = serve("a.zip")
    assert (code, 'pip install "handlens[serve]"' in err) == (2, True)


def test_names_of_folders_and_zips() -> None:
    assert names(["x/flowers-v1.2", "y/b.zip"], []) == {"flowers-v1.2": Path("x/flowers-v1.2"), "b": Path("y/b.zip")}
    with pytest.raises(HandlensError):
        names(["花.zip"], [])
