"""How far an unfinished run has come, in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from handlens import files
from handlens.errors import HandlensError, counted


def spent_s(folder: Path) -> float:
    """Seconds that a run had been trained for when it was last saved; 0 where it was not."""
    return float(read_state(folder, mapped=True).get("spent_s", 0.0))


def epochs_done(folder: Path) -> int | None:
    """Whole epochs that a run had been trained for when it was last saved; None where it was not."""
    state = read_state(folder, mapped=True)
    return int(state["at"]["epoch"]) if state else None


def check_processes(folder: Path, processes: int) -> None:
    """Raise HandlensError where a run was begun with another number of processes than these."""
    if (begun_with := read_state(folder, mapped=True).get("processes", processes)) != processes:
        raise HandlensError(
            f"{folder} was begun with {counted(begun_with, 'process')}, and goes on with "
            f"{processes}, which would give other figures",
            f"go on with --devices {begun_with}, or as many in all on several machines",
        )


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `state`, which `torch.load` must read with weights_only, atomically."""
    with files.atomic(folder / files.STATE) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # of a full disk, say, which torch hides
                raise error.__context__ from None
            raise


def read_state(folder: Path, mapped: bool = False) -> dict[str, Any]:
    """The state of a run, empty where none was saved. mapped: leave its tensors on the disk.

    Raises HandlensError where it is damaged.
    """
    path = folder / files.STATE
    if not path.is_file():
        return {}
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        return state
    except Exception as error:  # torch raises many kinds for a damaged file
        raise HandlensError(f"{path} is damaged ({type(error).__name__})", "remove the run and train again") from error
