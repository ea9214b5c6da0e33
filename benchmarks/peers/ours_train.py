"""Fine-tuning by `handlens.fit`: the loop's seconds with validation after each epoch, and its top-1 there.

The clock starts after `skip_epochs` epochs where that is given.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from handlens.train import Watcher, fit

given = json.loads(sys.argv[1])


class Clock(Watcher):
    begun = 0.0
    ended = 0.0

    skipped = given.get("skip_epochs", 0)

    def started(self, folder):
        self.begun = time.perf_counter()

    def epoch(self, log):
        self.ended = time.perf_counter()
        if len(log) == self.skipped:
            self.begun = self.ended
        self.log = log


clock = Clock()
with tempfile.TemporaryDirectory() as work:
    more = {name: given[name] for name in ("train_px", "batch_size", "device") if given.get(name)}
    mode = "scratch" if given["weights"] == "none" else "full"
    run = fit(
        given["folder"], out=Path(work) / "run", net=given["net"], mode=mode, weights=given["weights"],
        image_px=given["px"], epochs=given["epochs"], seed=0, watcher=clock, **more,
    )  # fmt: skip
print(
    json.dumps(
        {
            "photos": run.metrics["photos"]["train"] * (given["epochs"] - clock.skipped),
            "seconds": clock.ended - clock.begun,
            "top1": clock.log[-1]["validation_top1"],
            "precision": run.recipe.precision,
            "train_px": run.recipe.train_px,
        }
    )
)
