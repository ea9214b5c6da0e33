"""What is said where a converter cannot do its work for reasons that are not the network's."""

from __future__ import annotations

import errno
import sys

import pytest
from torch import nn

from handlens.errors import HandlensError, NotHereError
from handlens.export.converting import converting


def test_a_part_that_is_missing_is_named() -> None:
    with (
        pytest.raises(NotHereError, match=r'needs not_there, .*pip install "handlens\[export-litert\]"'),
        converting("litert", nn.Identity()),
    ):
        import not_there  # type: ignore[import-not-found]  # noqa: F401


def test_where_there_is_no_converter_installing_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with (
        pytest.raises(HandlensError, match=r"converter does not run on Windows; export on Linux"),
        converting("litert", nn.Identity()),
    ):
        raise ModuleNotFoundError("No module named 'litert_torch'", name="litert_torch")


def test_a_full_disk_is_not_the_networks_fault() -> None:
    with pytest.raises(HandlensError, match="the disk is full"), converting("coreml", nn.Identity()):
        raise OSError(errno.ENOSPC, "No space left on device")
