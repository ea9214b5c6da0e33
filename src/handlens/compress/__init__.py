"""Smaller and faster: the INT8 ladder and quantisation-aware training; and `export`, which uses them."""

from __future__ import annotations

from handlens.compress.job import export
from handlens.compress.ladder import Rung

__all__ = ["Rung", "export"]
