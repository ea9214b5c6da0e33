"""Training: a recipe, the loop, and `fit`, which does a whole run."""

from __future__ import annotations

from handlens.train.job import Run, Watcher, fit
from handlens.train.recipe import Recipe

__all__ = ["Recipe", "Run", "Watcher", "fit"]
