"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("HANDLENS_SHARED") or Path(__file__).resolve().parents[2] / "shared")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference figures, weights and photos beside the project; a test that needs it skips without."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("the shared folder of references, weights and photos is not beside the project")
    return SHARED


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
