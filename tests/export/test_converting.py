"""What is said where a converter cannot do its work for reasons that are not the network's."""

from __future__ import annotations

import errno
import os
import sys
import threading

import pytest
from torch import nn

from handlens.errors import HandlensError, NotHereError
from handlens.export.converting import converting
from handlens.run.artifact import quiet


def test_a_part_that_is_missing_is_named() -> None:
    with (
        pytest.raises(NotHereError, match=r'needs not_there, .*pip install "handlens\[export-litert\]"'),
        converting("litert", nn.Identity()),
    ):
        import not_there  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize(
    ("target", "module", "where"),
    [("litert", "litert_torch", r"Linux \(WSL will do\), and use"), ("coreml", "coremltools", r"Linux .* or macOS")],
)
def test_where_there_is_no_converter_installing_is_not_advised(
    target: str, module: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with (
        pytest.raises(HandlensError, match=rf"converter does not run on Windows; export on {where}"),
        converting(target, nn.Identity()),
    ):
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)


@pytest.mark.parametrize("closed", [("stdout",), ("stdout", "stderr")])
def test_closed_streams_are_no_matter(closed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As `handlens export RUN >&-` has them."""
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    with converting("onnx", nn.Identity()):
        print("what a converter tells")


def test_threads_that_convert_at_once_leave_the_streams_as_they_were() -> None:
    before, within = [os.fstat(number) for number in (1, 2)], threading.Event()

    def convert() -> None:
        with converting("onnx", nn.Identity()):
            within.wait(0.2)

    def load() -> None:
        with quiet():
            within.wait(0.2)

    threads = [threading.Thread(target=work) for work in (convert, load, convert, load)]
    for thread in threads:
        thread.start()
    threads[-1].join(0.05)
    within.set()
    for thread in threads:
        thread.join()
    assert [os.fstat(number) for number in (1, 2)] == before


def test_a_full_disk_is_not_the_networks_fault() -> None:
    with pytest.raises(HandlensError, match="the disk is full"), converting("coreml", nn.Identity()):
        raise OSError(errno.ENOSPC, "No space left on device")
