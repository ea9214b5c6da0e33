"""The frozen network's features of photos, computed once and cached by weights, pixel contract and photo."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import nn

from handlens import export, files
from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.photos import Photos, in_threads
from handlens.preprocess import Preprocess
from handlens.train import augment
from handlens.train.pixels import Pixels

_BATCH = 64
_WORTH_CONVERTING = 1000  # images: fewer are through in torch before a file for onnxruntime is made
_SAME = 1e-3  # of the largest value: what the features of the two may differ by


def weights_hash(net: nn.Module) -> str:
    """SHA-256 over a network's make-up and the names and values of its weights, its last linear layer left out."""
    digest = hashlib.sha256()
    for name, module in net.named_children():
        if name != "classifier":
            digest.update(repr(module).encode())  # the same weights with another padding give other features
    last = f"classifier.{len(net.classifier) - 1}."  # type: ignore[arg-type]
    for key, value in net.state_dict().items():
        if not key.startswith(last):
            digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def features(
    net: Net,
    photos: Photos,
    sha256: dict[str, str],
    preprocess: Preprocess,
    *,
    views: int,
    min_area: float,
    flip: bool,
    precision: str,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """`net.embed` of each photo as it is seen in use, then of `views` random crops: float32 (1 + views, N, F).

    A view of a photo depends on the photo's content and the view's number alone. What was computed before for the
    same weights, contract and photo is read from the cache folder; a cache that cannot be read or written is ignored.
    """
    contract = json.dumps([weights_hash(net), preprocess.to_dict(), views, min_area, flip, precision], sort_keys=True)
    path = files.cache_folder() / "features" / f"{hashlib.sha256(contract.encode()).hexdigest()[:32]}.safetensors"
    names = [sha256[photo] for photo in photos.paths]
    known = _read(path, (1 + views, net.num_features))
    missing = [index for index, name in enumerate(names) if name not in known]
    if missing:
        embed = _embedder(net, preprocess, precision, device, len(missing) * (1 + views))
    pixels = Pixels(photos, preprocess, cache_mb=0)
    try:
        todo = [missing[start : start + _BATCH] for start in range(0, len(missing), _BATCH)]

        def cut(batch: list[int]) -> list[np.ndarray]:
            return _views(pixels, batch, [names[index] for index in batch], preprocess, views, min_area, flip)

        done = 0
        for batch, stacks in zip(todo, in_threads(cut, todo, ahead=2, threads=1), strict=True):
            vectors = np.stack([embed(images) for images in stacks])
            known.update({names[index]: vectors[:, row] for row, index in enumerate(batch)})
            done += len(batch)
            if progress:
                progress(done, len(missing))
    finally:
        pixels.close()
    if missing:
        _write(path, known)
    return np.stack([known[name] for name in names], axis=1)


def _views(
    pixels: Pixels,
    indices: Sequence[int],
    names: Sequence[str],
    preprocess: Preprocess,
    views: int,
    min_area: float,
    flip: bool,
) -> list[np.ndarray]:
    """uint8 (B, px, px, 3) of some photos as they are seen in use, then of each view."""
    from PIL import Image

    photos = pixels.get(indices)
    stacks = [np.stack([preprocess.fit(Image.fromarray(photo)) for photo in photos])]
    for view in range(1, views + 1):
        cut = []
        for photo, name in zip(photos, names, strict=True):
            rng = np.random.default_rng([int(name[:15], 16), view])
            image = augment.random_crops([photo], preprocess.image_px, min_area, rng)
            cut.append((augment.flip(image, rng) if flip else image)[0].permute(1, 2, 0).numpy())
        stacks.append(np.stack(cut))
    return stacks


Embed = Callable[[np.ndarray], np.ndarray]
"""uint8 RGB (B, px, px, 3) -> float32 (B, F)."""


def by_onnxruntime(device: torch.device, num_images: int) -> bool:
    """Whether features of so many images are computed by onnxruntime: on a CPU, where it is installed, if it pays."""
    parts = ("onnxruntime", "onnx", "onnxscript")
    return device.type == "cpu" and num_images >= _WORTH_CONVERTING and all(map(importlib.util.find_spec, parts))


def _embedder(net: Net, preprocess: Preprocess, precision: str, device: torch.device, num_images: int) -> Embed:
    """`net.embed` of photos: by onnxruntime on a CPU where that pays and gives the same, else by torch."""
    by_torch = _torch_embedder(net, preprocess, precision, device)
    if not by_onnxruntime(device, num_images):
        return by_torch
    try:
        by_onnx = _onnx_embedder(net, preprocess)
    except HandlensError:  # ONNX cannot express it
        return by_torch
    px = preprocess.image_px
    probe = np.random.default_rng(0).integers(0, 256, (2, px, px, 3), dtype=np.uint8)
    exact = _torch_embedder(net, preprocess, "32-true", device)(probe)
    return by_onnx if np.abs(by_onnx(probe) - exact).max() <= _SAME * max(1.0, np.abs(exact).max()) else by_torch


def _onnx_embedder(net: Net, preprocess: Preprocess) -> Embed:
    """onnxruntime runs MobileNetV2 at four times torch's rate on a CPU; the file is made in some seconds."""
    from handlens.run import onnx_runtime

    headless = copy.deepcopy(net).cpu().float().eval()
    headless.classifier[-1] = nn.Identity()  # its "logits" are what the last layer would have read
    infer = onnx_runtime.predictor(export.convert(export.fold_batch_norm(headless), preprocess, "onnx"))
    return lambda images: infer(images)[1]


def _torch_embedder(net: Net, preprocess: Preprocess, precision: str, device: torch.device) -> Embed:
    wrapped = copy.deepcopy(net).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    dtype = torch.float16 if precision.startswith("16") else torch.bfloat16

    def embed(images: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(preprocess.normalise(images)).to(device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=precision != "32-true"):
            vectors: np.ndarray = wrapped.embed(x).float().cpu().numpy()
        return vectors

    return embed


def _read(path: object, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    try:
        stored = safetensors.numpy.load_file(str(path))
    except (OSError, SafetensorError, ValueError):
        return {}
    return {name: vectors for name, vectors in stored.items() if vectors.shape == shape}


def _write(path: object, known: dict[str, np.ndarray]) -> None:
    try:
        with files.atomic(str(path)) as file:
            file.write(safetensors.numpy.save({name: np.ascontiguousarray(v) for name, v in known.items()}))
    except (OSError, HandlensError):
        pass  # a full or read-only disk costs the next run some time, nothing else
