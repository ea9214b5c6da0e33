"""Fine-tuning on the processor, beside timm's and torchvision's training loops, in one run on the same photos:

    python benchmarks/train.py PHOTOS --v2-weights FILE [--photos 320] [--epochs 2] [--rounds 2]

photos/s of the whole loop at 224 px, with validation after each epoch, from the same weights: MobileNetV2 from a file
of ImageNet weights, V3 from the trained runs of benchmarks/runs (their validation figures say nothing: they have seen
these photos). Each peer gets its best of 0 to 3 workers and 1 to 2 threads. Writes benchmarks/results/train.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from handlens import files, photos
from handlens.nets import keys, weights
from side_by_side import ROOT, best_settings, have_peers, in_turn, machine, own, peer

RESULT = ROOT / "benchmarks" / "results" / "train.json"
PX = 224
RUNS = ROOT / "benchmarks" / "runs"
NETS = {  # ours: timm's name and arguments, torchvision's name, what to begin from
    "mobilenet_v2": ("mobilenetv2_100", {"pad_type": "same"}, "mobilenet_v2", None),
    "mobilenet_v3_small": (
        "mobilenetv3_small_100", {"bn_eps": 1e-3}, "mobilenet_v3_small", RUNS / "flowers_mobilenet_v3_small_scratch",
    ),
    "mobilenet_v3_large": (
        "mobilenetv3_large_100", {"bn_eps": 1e-3}, "mobilenet_v3_large", RUNS / "flowers_mobilenet_v3_large_scratch",
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--v2-weights", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--net", action="append", choices=list(NETS))
    given = parser.parse_args()
    command = f"python benchmarks/train.py PHOTOS --v2-weights FILE --photos {given.photos} --epochs {given.epochs}"
    result: dict[str, Any] = {"nets": {}}
    if RESULT.exists():
        result["nets"] = json.loads(RESULT.read_text("utf-8"))["nets"]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        classes = lay_out(given.folder, work / "photos", given.photos, max(16, given.photos // 8))
        lay_out(given.folder, work / "few", 64, 16)
        for net in given.net or NETS:
            print(net, file=sys.stderr)
            begin = given.v2_weights if NETS[net][3] is None else Path(NETS[net][3] or "", "model.safetensors")
            begin = Path(shutil.copy(begin, work / f"{net}{begin.suffix}"))  # alone: a run refuses what it learned from
            before = {"command": f"{command} --net {net}", **machine()}
            result["nets"][net] = before | one_net(net, begin, work, classes, given.epochs, given.rounds)
            files.write_json(RESULT, result)
    for net, found in result["nets"].items():
        for kind, seen in found["photos_per_s"].items():
            ratio = seen["median"] / found["photos_per_s"].get("timm", {"median": float("nan")})["median"]
            print(
                f"{net:20} {kind:32} {seen['median']:6.1f} photos/s ({seen['least']:.1f} to {seen['greatest']:.1f}), "
                f"{ratio:.1f} x timm, validation {found['validation_top1'][kind]:.1%}"
            )


def lay_out(source: str, folder: Path, num_train: int, num_validation: int) -> int:
    """Links to evenly chosen photos below folder/train and folder/val; the number of classes."""
    found = photos.scan(source)
    order = sorted(range(len(found)), key=lambda index: (hash_of(found.paths[index]), index))
    for split, chosen in (("train", order[:num_train]), ("val", order[num_train : num_train + num_validation])):
        for index in chosen:
            path = folder / split / found.classes[found.labels[index]] / Path(found.paths[index]).name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(os.path.abspath(found.path(index)), path)
    return len(found.classes)


def hash_of(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def one_net(net: str, begin: Path, work: Path, num_classes: int, epochs: int, rounds: int) -> dict[str, Any]:
    timm_name, arguments, torchvision_name, _ = NETS[net]
    file = weights.find(net, str(begin))
    ours = weights.load(file).state_dict()
    settings = {
        "px": PX, "resize_px": 256, "mean": file.preprocess.mean, "std": file.preprocess.std, "timm": timm_name,
        "arguments": arguments, "torchvision": torchvision_name, "num_classes": num_classes, "net": net,
        "epochs": epochs, "folder": str(work / "photos"), "weights": str(begin),
    }  # fmt: skip
    others = (("timm", "timm_train.py"), ("torchvision", "torchvision_train.py")) if have_peers() else ()
    if others:
        shapes = peer("timm_keys.py", settings, 1)["shapes"]
        for_timm = {
            key: ours[name].reshape(shape).contiguous()
            for key, shape in shapes.items()
            if (name := keys.rename("timm", net, key)) in ours and not key.startswith("classifier")
        }
        save_file(for_timm, work / f"{net}-timm.safetensors")
        with_own_names = {key: value.contiguous() for key, value in ours.items() if not key.startswith("classifier")}
        save_file(with_own_names, work / f"{net}-torchvision.safetensors")
    kinds: dict[str, Any] = {"handlens": lambda: own("ours_train.py", settings)}
    kinds["handlens, crops of 224 px"] = lambda: own("ours_train.py", {**settings, "train_px": PX})
    chosen = {}
    for kind, script in others:
        theirs = {**settings, "weights": str(work / f"{net}-{kind}.safetensors")}
        few = {**theirs, "folder": str(work / "few"), "epochs": 1}
        workers, threads = best_settings(
            lambda workers, threads, script=script, few=few: peer(
                script, {**few, "workers": workers, "threads": threads}, threads
            )
        )
        chosen[kind] = {"workers": workers, "threads": threads}
        kinds[kind] = lambda script=script, more={**theirs, **chosen[kind]}: peer(script, more, more["threads"])
    rates, last = in_turn(kinds, rounds)
    return {
        "photos_per_s": rates, "settings": chosen, "epochs": epochs,
        "validation_top1": {kind: said["top1"] for kind, said in last.items()},
        "precision": {kind: said.get("precision", "32-true") for kind, said in last.items()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
