"""One photo: what `load(bundle).predict(photo)` adds to the bare runtime and decoding, and a cold command:

    python benchmarks/one_photo.py PHOTO [--rounds 200]

MobileNetV3-Small of benchmarks/runs at 224 px, as an ONNX bundle in float32 and INT8. The cold command is
`handlens predict BUNDLE PHOTO` from process start to answer: seconds, processor seconds, greatest memory
(as Linux counts it).
Writes benchmarks/results/one_photo.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from handlens import bundle, checkpoint, export, files, run
from handlens.compress import onnx as onnx_int8
from handlens.run import onnx_runtime
from side_by_side import ROOT, machine

RESULT = ROOT / "benchmarks" / "results" / "one_photo.json"
RUN = ROOT / "benchmarks" / "runs" / "flowers_mobilenet_v3_small_scratch"
COLD = (
    "import sys, time\n"
    "sys.argv = ['handlens', 'predict', sys.argv[1], sys.argv[2], '--json']\n"
    "import handlens.cli\n"
    "try: handlens.cli.main()\n"
    "finally:\n"
    "    status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
    "    memory_mib = int(status['VmHWM'].split()[0]) / 1024\n"
    "    print(time.process_time(), memory_mib, 'torch' in sys.modules, file=sys.stderr)\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    found = checkpoint.load(RUN)
    contract = found.preprocess.at(224)
    folded, facts = export.folded(found.net), bundle.facts(found.name, found.classes, contract)
    plain = export.convert(folded, contract, "onnx", facts)
    small = onnx_int8.quantizer(folded, contract, facts, np.repeat(contract.load(given.photo)[None], 8, 0))("minmax")
    result: dict[str, Any] = {"command": "python benchmarks/one_photo.py PHOTO", **machine()}
    with tempfile.TemporaryDirectory() as work:
        for precision, artifact in (("float32", plain), ("int8", small)):
            path = Path(work) / f"{precision}.zip"
            made = bundle.Bundle(
                runtime="onnx", precision=precision, artifact=artifact, net=found.name, classes=found.classes,
                preprocess=contract, card={},
            )  # fmt: skip
            bundle.write(path, made)
            result[precision] = {**warm(path, artifact, given.photo, given.rounds), "cold": cold(path, given.photo)}
    files.write_json(RESULT, result)
    print(json.dumps({key: result[key] for key in ("float32", "int8")}, indent=1))


def warm(path: Path, artifact: Any, photo: str, rounds: int) -> dict[str, float]:
    """Medians in ms, the three taken in turn."""
    classifier = run.load(path, threads=1)
    bare = onnx_runtime.start(artifact, 1)[0]
    pixels = classifier.preprocess.load(photo)[None]
    kinds: dict[str, Callable[[], Any]] = {
        "network_ms": lambda: bare(pixels),
        "decode_ms": lambda: classifier.preprocess.load(photo),
        "predict_ms": lambda: classifier.predict(photo),
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 10):
        for name, call in kinds.items():
            start = time.perf_counter()
            call()
            if number >= 10:
                taken[name].append(1000 * (time.perf_counter() - start))
    result = {name: statistics.median(values) for name, values in taken.items()}
    result["added"] = result["predict_ms"] / (result["network_ms"] + result["decode_ms"]) - 1
    return result


def cold(path: Path, photo: str) -> dict[str, Any]:
    """Medians of five commands."""
    seconds, processor_s, memory_mb, torch = [], [], [], False
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", COLD, str(path), photo], capture_output=True, text=True, check=True, env=os.environ
        )
        seconds.append(time.perf_counter() - start)
        cpu, memory, loaded = done.stderr.split()[-3:]
        processor_s.append(float(cpu))
        memory_mb.append(float(memory))
        torch = torch or loaded == "True"
    return {
        "seconds": statistics.median(seconds), "processor_s": statistics.median(processor_s),
        "memory_mib": max(memory_mb), "torch_loaded": torch,
    }  # fmt: skip


if __name__ == "__main__":
    main()
