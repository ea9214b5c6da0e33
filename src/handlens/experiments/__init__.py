"""The papers' own experiments, each a file with a function `experiment`: `run(name)` gives numbers and a figure.

Nothing here loads torch or matplotlib until an experiment is run.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from handlens.errors import HandlensError, did_you_mean

if TYPE_CHECKING:
    from handlens.experiments.result import Result

__all__ = ["EXPERIMENTS", "About", "Report", "finite", "run"]


class About(NamedTuple):
    """What an experiment is about, and where it comes from."""

    line: str
    paper: str


EXPERIMENTS: dict[str, About] = {  # by name; the module's is the same, with underscores
    "bottleneck": About("256 5x5 filters over 128 channels, directly and through 1x1 filters", "arXiv 1409.4842"),
    "separable": About("standard against depthwise-separable convolution: count, time, bytes", "arXiv 1704.04861"),
    "relu-collapse": About("a spiral through ReLU in 2 to 30 dimensions, and back", "arXiv 1801.04381 Figure 1"),
    "linear-bottleneck": About("MobileNetV2 with and without ReLU6 after the bottleneck", "arXiv 1801.04381 Figure 6a"),
    "receptive-field": About("what three 3x3 and one 7x7 see, by formula and gradients", "arXiv 1409.1556, 1701.04128"),
    "residual": About("residual against plain networks of 20 and 56 layers", "arXiv 1512.03385 Figure 6"),
    "batch-norm": About("its statistics, its two momentums, what batch size does to it", "arXiv 1502.03167"),
    "activations": About("swish, sigmoid, their hard forms and ReLU: curves, distances, time", "arXiv 1905.02244"),
    "multipliers": About("accuracy against MACs, by width and by resolution", "arXiv 1704.04861 Tables 6 and 7"),
    "normalisation": About("fixed, min-max, z-score, max-abs and L2: histograms and training", "the pixel contract"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """An experiment that was run: what it found, with which settings, in how many seconds.

    seconds: by the clock; cpu_seconds: of the processor, by which a busy machine can be told from a long experiment.
    """

    name: str
    settings: dict[str, Any]
    seconds: float
    cpu_seconds: float
    result: Result

    def to_dict(self) -> dict[str, Any]:
        """All but the figure, JSON-ready: numbers that are not finite are None."""
        import torch

        about = EXPERIMENTS[self.name]
        facts = {
            "experiment": self.name,
            "about": about.line,
            "paper": about.paper,
            "finding": self.result.finding,
            "settings": self.settings,
            "data": self.result.data,
            "tables": self.result.tables,
            "numbers": self.result.numbers,
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": {name: version(name) for name in ("handlens", "torch", "numpy")},
        }
        return finite(facts)


def run(name: str, progress: Callable[[int, int], None] | None = None, **given: Any) -> Report:
    """Run an experiment. `given`: `seed`, `epochs`, `photos` and what else its function takes.

    `progress` is called with (done, total) by experiments that train. Raises HandlensError for an unknown name, naming
    the nearest, and for a setting that the experiment does not have.
    """
    if name not in EXPERIMENTS:
        hint = did_you_mean(name, EXPERIMENTS, "`handlens experiment` lists them")
        raise HandlensError(f"there is no experiment named {name!r}", hint)
    function = importlib.import_module(f"handlens.experiments.{name.replace('-', '_')}").experiment
    known = inspect.signature(function).parameters
    for setting in given:
        if setting not in known:
            takes = ", ".join(key for key in known if key != "progress")
            raise HandlensError(
                f"the experiment {name} takes no {setting!r}", f"its settings are {takes}" if takes else "leave it out"
            )
    defaults = {key: parameter.default for key, parameter in known.items() if key != "progress"}
    start, cpu_start = time.perf_counter(), time.process_time()
    result = function(**given, **({"progress": progress} if "progress" in known else {}))
    return Report(
        name=name,
        settings=defaults | given,
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - cpu_start,
        result=result,
    )


def finite(value: Any) -> Any:
    """JSON-ready: keys are strings, numbers that are not finite None, what JSON does not know its text."""
    if isinstance(value, dict):
        return {str(key): finite(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(member) for member in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
