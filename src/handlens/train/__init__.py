"""Training: a recipe, the loop, and `fit`, which does a whole run."""

from __future__ import annotations

from handlens.train.job import Run, fit
from handlens.train.recipe import Recipe
from handlens.train.watcher import Watcher

__all__ = ["Recipe", "Run", "Watcher", "fit"]
