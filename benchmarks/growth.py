"""How time and memory grow with the number of photos:

    python benchmarks/growth.py BUNDLE [--counts 1000,10000,100000]

Drawn photos of 64 x 48 px, all different, in ten folders. Of each number: photos/s and greatest memory of `handlens
predict BUNDLE PHOTOS --csv FILE`, of scanning, examining and splitting, and of three passes over the photos that a
training keeps decoded, with a budget of --cache-mb. Each in a process of its own, which tells its memory as Linux
counts it. Writes benchmarks/results/growth.json.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlens import files
from side_by_side import ROOT, machine

RESULT = ROOT / "benchmarks" / "results" / "growth.json"
BEGIN = (
    "import atexit, sys\n"
    "def tell():\n"
    "    status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
    "    print('\\n' + status['VmHWM'].split()[0], file=sys.stderr)\n"
    "atexit.register(tell)\n"
)
PREDICT = "import handlens.cli\nsys.argv = ['handlens', 'predict', *sys.argv[1:]]\nhandlens.cli.main()\n"
LOOK = (
    "from handlens import photos\n"
    "found = photos.scan(sys.argv[1])\n"
    "findings = photos.examine(found)\n"
    "assert sum(map(len, photos.split(found, findings.sha256).values())) == len(found)\n"
)
CACHE = (
    "from handlens import photos\n"
    "from handlens.preprocess import Preprocess\n"
    "from handlens.train.pixels import Pixels\n"
    "found = photos.scan(sys.argv[1])\n"
    "pixels = Pixels(found, Preprocess(), int(sys.argv[2]))\n"
    "for _ in range(3):\n"
    "    for start in range(0, len(found), 32): pixels.get(range(start, min(start + 32, len(found))))\n"
    "pixels.close()\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--counts", default="1000,10000,100000")
    parser.add_argument("--cache-mb", type=int, default=64)
    given = parser.parse_args()
    result: dict[str, Any] = {"command": "python benchmarks/growth.py BUNDLE", **machine(), "counts": {}}
    result["cache_mb"] = given.cache_mb
    for count in map(int, given.counts.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = draw(Path(name) / "photos", count)
            csv = Path(name) / "answers.csv"
            predict = [PREDICT, str(given.bundle), str(folder), "--csv", str(csv)]
            found = {
                "predict": measured(predict, name, count),
                "scan, examine, split": measured([LOOK, str(folder)], name, count),
                "photos kept decoded": measured([CACHE, str(folder), str(given.cache_mb)], name, 3 * count),
            }
            rows = csv.read_text(encoding="utf-8").count("\n") - 1
            if rows != count:
                raise SystemExit(f"{count} photos, but {rows} rows of answers")
        result["counts"][str(count)] = found
        for what, figures in found.items():
            print(
                f"{count:7} {what:22} {figures['photos_per_s']:8.0f} photos/s {figures['memory_mib']:7.0f} MiB",
                flush=True,
            )
    files.write_json(RESULT, result)


def draw(folder: Path, count: int) -> Path:
    """So many photos of coloured blotches, in ten folders."""
    random = np.random.default_rng(0)
    for number in range(count):
        blotches = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
        content = io.BytesIO()
        blotches.resize((64, 48), Image.Resampling.BICUBIC).save(content, "JPEG", quality=80)
        path = folder / f"class {number % 10}" / f"{number:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())
    return folder


def measured(arguments: list[str], work: str, count: int) -> dict[str, float]:
    """Photos/s, processor seconds and greatest memory of Python code with arguments."""
    environment = {**os.environ, "HANDLENS_CACHE": str(Path(work) / "cache")}
    code, *rest = arguments
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code, *rest],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    processor_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "seconds": seconds, "photos_per_s": count / seconds, "processor_s": processor_s,
        "memory_mib": int(done.stderr.split()[-1]) / 1024,
    }  # fmt: skip


if __name__ == "__main__":
    main()
