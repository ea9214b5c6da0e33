"""Photos: found, looked at, split and read as arrays. Nothing here loads torch."""

from __future__ import annotations

from handlens.photos.batches import batches, in_threads
from handlens.photos.examine import Facts, Findings, combined, examine, usable
from handlens.photos.scan import Photos, check_trainable, scan, unsorted
from handlens.photos.split import folds, keep_together, read_split, relabelled, split, write_split

__all__ = [
    "Facts",
    "Findings",
    "Photos",
    "batches",
    "check_trainable",
    "combined",
    "examine",
    "folds",
    "in_threads",
    "keep_together",
    "read_split",
    "relabelled",
    "scan",
    "split",
    "unsorted",
    "usable",
    "write_split",
]
