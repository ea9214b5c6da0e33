"""The frozen network's features of photos, computed once and cached by weights, pixel contract and photo."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import nn

from handlens import files
from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.photos import Photos
from handlens.preprocess import Preprocess
from handlens.train import augment
from handlens.train.pixels import Pixels

_BATCH = 64


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
    net = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    pixels = Pixels(photos, preprocess, cache_mb=0)
    try:
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            vectors = _embed(net, pixels, batch, [names[index] for index in batch], preprocess, views, min_area, flip,
                             precision, device)  # fmt: skip
            known.update({names[index]: vectors[:, row] for row, index in enumerate(batch)})
            if progress:
                progress(start + len(batch), len(missing))
    finally:
        pixels.close()
    if missing:
        _write(path, known)
    return np.stack([known[name] for name in names], axis=1)


def _embed(
    net: Net,
    pixels: Pixels,
    indices: Sequence[int],
    names: Sequence[str],
    preprocess: Preprocess,
    views: int,
    min_area: float,
    flip: bool,
    precision: str,
    device: torch.device,
) -> np.ndarray:
    from PIL import Image

    photos = pixels.get(indices)
    plain = np.stack([preprocess.fit(Image.fromarray(photo)) for photo in photos])
    stacks = [plain]
    for view in range(1, views + 1):
        cut = []
        for photo, name in zip(photos, names, strict=True):
            rng = np.random.default_rng([int(name[:15], 16), view])
            image = augment.random_crops([photo], preprocess.image_px, min_area, rng)
            cut.append((augment.flip(image, rng) if flip else image)[0].permute(1, 2, 0).numpy())
        stacks.append(np.stack(cut))
    vectors = []
    for images in stacks:
        x = torch.from_numpy(preprocess.normalise(images)).to(device).contiguous(memory_format=torch.channels_last)
        enabled = precision != "32-true"
        dtype = torch.float16 if precision.startswith("16") else torch.bfloat16
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=enabled):
            vectors.append(net.embed(x).float().cpu().numpy())
    return np.stack(vectors)


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
