"""What a network costs: counted on shapes (`count`, `report`), and measured (`measure`: latency of any callable).

The public names are loaded when they are first used: measuring an exported file's latency loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {  # name: module that defines it
    "Cost": "counts",
    "count": "counts",
    "count_params": "counts",
    "macs_of": "counts",
    "Layer": "layers",
    "peak_inference_bytes": "memory",
    "peak_training_bytes": "memory",
    "weight_bytes": "memory",
    "Report": "report",
    "report_on": "report",
    "Latency": "latency",
    "measure": "latency",
    "front": "pareto",
}
__all__ = [*_PUBLIC]

if TYPE_CHECKING:
    from handlens.cost.counts import Cost as Cost
    from handlens.cost.counts import count as count
    from handlens.cost.counts import count_params as count_params
    from handlens.cost.counts import macs_of as macs_of
    from handlens.cost.latency import Latency as Latency
    from handlens.cost.latency import measure as measure
    from handlens.cost.layers import Layer as Layer
    from handlens.cost.memory import peak_inference_bytes as peak_inference_bytes
    from handlens.cost.memory import peak_training_bytes as peak_training_bytes
    from handlens.cost.memory import weight_bytes as weight_bytes
    from handlens.cost.pareto import front as front
    from handlens.cost.report import Report as Report
    from handlens.cost.report import report_on as report_on


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"handlens.cost.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'handlens.cost' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
