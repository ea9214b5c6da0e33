"""Predicting a folder of photos, beside timm and beside onnxruntime with Pillow, in one run on the same photos:

    python benchmarks/predict.py PHOTOS [--photos 600] [--large 60] [--rounds 3]

decode, resize, normalise, network, top-1, CSV, without the start-up of each. Networks are the trained ones of
benchmarks/runs at 224 px, which see all of the shorter side; each peer gets its best of 0 to 3 workers and 1 to 2
threads. Writes benchmarks/results/predict.json, with where the time of ours goes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from handlens import bundle, checkpoint, export, files
from handlens.compress import litert as litert_int8
from handlens.compress import onnx as onnx_int8
from handlens.nets import keys
from handlens.run import bundles, openvino_runtime
from side_by_side import ROOT, best_settings, have_peers, in_turn, machine, own, peer, photos_below

RESULT = ROOT / "benchmarks" / "results" / "predict.json"
PX = 224
NETS = {  # run: timm's name and arguments
    "flowers_mobilenet_v2_full": ("mobilenetv2_100", {"pad_type": "same"}),
    "flowers_mobilenet_v3_small_scratch": ("mobilenetv3_small_100", {"bn_eps": 1e-3}),
    "flowers_mobilenet_v3_large_scratch": ("mobilenetv3_large_100", {"bn_eps": 1e-3}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--large", type=int, default=60, help="photos of 12 megapixels, made by enlarging")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--net", action="append", choices=list(NETS), help="only these runs")
    given = parser.parse_args()
    small = photos_below(given.folder, given.photos)
    result: dict[str, Any] = {"command": "python benchmarks/predict.py PHOTOS", **machine(), "image_px": PX, "nets": {}}
    commit = result.pop("commit")  # of each network's figures its own
    if RESULT.exists():
        result["nets"] = json.loads(RESULT.read_text("utf-8"))["nets"]
    with tempfile.TemporaryDirectory() as work:
        sets = {"small": small}
        if given.large:
            sets["12 megapixels"] = enlarged(small[:: max(1, len(small) // given.large)][: given.large], Path(work))
        for run in given.net or NETS:
            print(run, file=sys.stderr)
            result["nets"][run] = {**one_net(run, sets, Path(work), given.rounds), "commit": commit}
            files.write_json(RESULT, result)
    show(result)


def enlarged(photos: list[str], work: Path) -> list[str]:
    """Each photo at 4000 x 3000 pixels or 3000 x 4000."""
    (work / "large").mkdir()
    made = []
    for number, path in enumerate(photos):
        with Image.open(path) as photo:
            size = (4000, 3000) if photo.width >= photo.height else (3000, 4000)
            photo.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(
                work / "large" / f"{number}.jpg", quality=90
            )
        made.append(str(work / "large" / f"{number}.jpg"))
    return made


def one_net(run: str, sets: dict[str, list[str]], work: Path, rounds: int) -> dict[str, Any]:
    found = checkpoint.load(ROOT / "benchmarks" / "runs" / run)
    # as a training in mode full or scratch makes it today: all of the shorter side
    contract = dataclasses.replace(found.preprocess.at(PX), resize_px=PX)
    folded = export.folded(found.net)
    facts = bundle.facts(found.name, found.classes, contract)
    plain = export.convert(folded, contract, "onnx", facts)
    images = np.stack([contract.load(path) for path in sets["small"][:64]])
    in_int8 = onnx_int8.quantizer(folded, contract, facts, images, plain=lambda: plain)
    plain_litert = export.convert(folded, contract, "litert", facts)
    in_int8_litert = litert_int8.quantizer(folded, contract, facts, images, plain=lambda: plain_litert)
    made: dict[str, tuple[str, str, Any]] = {
        "float32": ("onnx", "float32", plain),
        "int8": ("onnx", "int8", in_int8("minmax", ())),
        "int8 weights": ("onnx", "int8", in_int8(None, ())),
        "float32, LiteRT": ("litert", "float32", plain_litert),
        "int8, LiteRT": ("litert", "int8", in_int8_litert("minmax", ())),
        "int8 weights, LiteRT": ("litert", "int8", in_int8_litert(None, ())),
        "float32, OpenVINO": ("openvino", "float32", export.convert(folded, contract, "openvino", facts)),
    }
    if openvino_runtime.computes_bfloat16():
        rounded = export.convert(folded, contract, "openvino", facts, "bfloat16")
        made["bfloat16, OpenVINO"] = ("openvino", "bfloat16", rounded)
    paths = {}
    for kind, (runtime, precision, artifact) in made.items():
        paths[kind] = work / f"{run} {kind}.zip"
        bundle.write(
            paths[kind],
            bundle.Bundle(
                runtime=runtime, precision=precision, artifact=artifact, net=found.name, classes=found.classes,
                preprocess=contract, card={},
            ),
        )  # fmt: skip
    bare = work / f"{run}.onnx"
    with torch.inference_mode():
        torch.onnx.export(
            folded, (torch.zeros(2, 3, PX, PX),), bare, dynamo=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
        )  # fmt: skip
    name, arguments = NETS[run]
    settings = {
        "px": PX, "resize_px": contract.resize_px, "mean": contract.mean, "std": contract.std,
        "num_classes": len(found.classes), "timm": name, "arguments": arguments, "csv": str(work / "answers.csv"),
        "onnx": str(bare), "weights": str(work / f"{run}-timm.safetensors"),
    }  # fmt: skip
    others = (("timm", "timm_predict.py"), ("onnxruntime and Pillow", "plain_onnxruntime.py")) if have_peers() else ()
    if others:
        shapes = peer("timm_keys.py", settings, 1)["shapes"]
        own_state = found.net.state_dict()
        theirs = {key: own_state[keys.rename("timm", found.name, key)].reshape(shape) for key, shape in shapes.items()}
        save_file({key: value.contiguous() for key, value in theirs.items()}, settings["weights"])
    answer: dict[str, Any] = {"net": found.name, "sets": {}}
    few = sets["small"][:64]
    chosen = {
        script: best_settings(
            lambda workers, threads, script=script: peer(
                script, {**settings, "photos": few, "workers": workers, "threads": threads}, threads
            )
        )
        for _, script in others
    }
    for label, photos in sets.items():
        kinds: dict[str, Any] = {
            f"handlens {kind}": lambda kind=kind, photos=photos: own(
                "ours_predict.py", {"bundle": str(paths[kind]), "photos": photos, "csv": settings["csv"]}
            )
            for kind in paths
        }
        for kind, script in others:
            workers, threads = chosen[script]
            more = {**settings, "photos": photos, "workers": workers, "threads": threads}
            kinds[kind] = lambda script=script, more=more, threads=threads: peer(script, more, threads)
        rates, last = in_turn(kinds, rounds)
        labels = {kind: np.array(said["labels"]) for kind, said in last.items()}
        answer["sets"][label] = {
            "photos": len(photos), "photos_per_s": rates,
            "same_labels": {
                kind: float((own_ == labels.get("timm", labels["handlens float32"])).mean())
                for kind, own_ in labels.items()
            },
            "settings": {kind: chosen[script] for kind, script in others},
        }  # fmt: skip
    answer["floors"] = floors(contract, sets["small"][:200], made, found.net)
    return answer


def floors(contract: Any, photos: list[str], artifacts: dict[str, Any], net: Any) -> dict[str, float]:
    """Milliseconds of one core: decoding, resizing and cutting, the bare network, a matrix product of as many MACs."""
    contents = [Path(path).read_bytes() for path in photos]

    def each_ms(function: Any, items: Any) -> float:
        best = []
        for _ in range(3):
            start = time.perf_counter()
            for item in items:
                function(item)
            best.append(1000 * (time.perf_counter() - start) / len(items))
        return statistics.median(best)

    from handlens.preprocess import open_photo

    opened = [open_photo(content) for content in contents]
    images = np.stack([contract.fit(photo) for photo in opened[:8]])
    result = {"decode_ms": each_ms(open_photo, contents), "resize_ms": each_ms(contract.fit, opened)}
    for kind, (runtime, _, artifact) in artifacts.items():
        infer = bundles.runtime_of(runtime).start(artifact, 1)[0]
        result[f"network_{kind}_ms"] = each_ms(infer, [images] * 20) / len(images)
    from handlens import cost

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    product_ms = each_ms(lambda _: a @ b, range(10))
    torch.set_num_threads(threads)
    result["gemm_ms"] = product_ms * cost.count(net, contract.image_px).macs / 1024**3
    return result


def show(result: dict[str, Any]) -> None:
    for run, found in result["nets"].items():
        for label, figures in found["sets"].items():
            base = figures["photos_per_s"].get("timm", {"median": float("nan")})["median"]
            for kind, seen in figures["photos_per_s"].items():
                print(
                    f"{run:36} {label:14} {kind:24} {seen['median']:7.1f} photos/s ({seen['least']:.1f} to "
                    f"{seen['greatest']:.1f}), {seen['median'] / base:5.1f} x timm, "
                    f"same labels {figures['same_labels'][kind]:.2%}"
                )
        print(json.dumps(found["floors"]))


if __name__ == "__main__":
    main()
