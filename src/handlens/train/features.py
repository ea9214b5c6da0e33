"""The frozen network's features of photos, computed once and cached by weights, pixel contract, view and photo."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import nn

from handlens import files
from handlens.errors import HandlensError
from handlens.export.converting import converting
from handlens.nets import Net
from handlens.nets.fold import fold_batch_norm
from handlens.nets.pixels import FromPixels
from handlens.photos import Photos, in_threads
from handlens.preprocess import Preprocess
from handlens.run import ALONE, TOGETHER
from handlens.train import augment
from handlens.train.pixels import shrunk

_DECODED = 2  # of how photos become pixels: since 2 floats up to 1 are not black
_WORTH_CONVERTING = 250  # images: fewer are through in torch before a file for onnxruntime is made
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


class Frozen:
    """A frozen network that gives features: `net.embed` of photos, cached.

    A view of a photo depends on the photo's content and the view's number alone: 0 is the photo as it is seen in use,
    the others are random crops, mirrored or not. What was computed before for the same weights, contract and photo is
    read from the cache folder; a cache that cannot be read or written is ignored.
    shape, dtype: of what `net.embed` gives for a photo, (num_features,) by itself, and of what is kept of it.
    """

    def __init__(
        self,
        net: Net,
        preprocess: Preprocess,
        *,
        min_area: float = 0.5,
        flip: bool = False,
        precision: str = "32-true",
        device: torch.device | None = None,
        shape: tuple[int, ...] = (),
        dtype: type[np.floating] = np.float32,
    ) -> None:
        self.net, self.preprocess = net, preprocess
        self.shape, self.dtype = shape or (net.num_features,), np.dtype(dtype)
        self.min_area, self.flip, self.precision = min_area, flip, precision
        self.device = device or torch.device("cpu")
        self._weights = weights_hash(net)
        self._embedder: _Embedder | None = None

    def features(
        self,
        photos: Photos,
        sha256: dict[str, str],
        views: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """The photos as they are seen in use, then `views` random crops of each: (1 + views, N, *shape).

        `progress` is called with photos (done, total) of those that are not in the cache.
        """
        return self.of_views(photos, sha256, range(1 + views), progress)

    def of_views(
        self,
        photos: Photos,
        sha256: dict[str, str],
        views: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """The same for views of these numbers: (len(views), N, *shape)."""
        names = [sha256[path] for path in photos.paths]
        found = np.empty((len(views), len(names), *self.shape), self.dtype)
        wanted: dict[str, list[int]] = {}  # the views that each photo lacks
        for row, view in zip(found, views, strict=True):  # one file at a time: it may hold far more photos than these
            have = _read(self._path(view), self.shape, self.dtype)
            for place, name in enumerate(names):
                if name in have:
                    row[place] = have[name]
                elif view not in wanted.setdefault(name, []):  # a photo may be there twice
                    wanted[name].append(view)
        if wanted:
            paths = {name: photos.path(i) for i, name in enumerate(names)}
            computed: dict[int, dict[str, np.ndarray]] = {view: {} for view in views}
            try:
                self._choose(len(views) * len(set(names)))  # by all of them, so that what is left is computed alike
                self._compute([(name, paths[name]) for name in wanted], wanted, computed, progress)
            finally:  # also of what was stopped
                for view, new in computed.items():
                    if new:  # the file is read again: another training may have written to it
                        path = self._path(view)
                        _write(path, _read(path, self.shape, self.dtype) | new)
            for row, view in zip(found, views, strict=True):
                for place, name in enumerate(names):
                    if name in computed[view]:
                        row[place] = computed[view][name]
        return found

    def num_lacking(self, photos: Photos, sha256: dict[str, str], views: int = 0) -> int:
        """How many of the photos `features` would have to compute anything of."""
        lacking: set[str] = set()
        for view in range(1 + views):
            lacking |= {sha256[path] for path in photos.paths}.difference(
                _read(self._path(view), self.shape, self.dtype)
            )
        return sum(sha256[path] in lacking for path in photos.paths)

    def _path(self, view: int) -> Path:
        area = self.min_area if self.min_area < 1 else "whole"  # which earlier versions drew a shape for
        cut = [view, area, self.flip] if view else []
        contract = json.dumps([_DECODED, self._weights, self.preprocess.to_dict(), self.precision, cut], sort_keys=True)
        name = hashlib.sha256(contract.encode()).hexdigest()[:32]
        return files.cache_folder() / "features" / f"{name}.safetensors"

    def _choose(self, num_images: int) -> None:
        if self._embedder is None:
            self._embedder = _embedder(self.net, self.preprocess, self.precision, self.device, num_images)

    def _compute(
        self,
        missing: list[tuple[str, Path]],
        wanted: dict[str, list[int]],
        computed: dict[int, dict[str, np.ndarray]],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        assert self._embedder
        embed, at_once, shared = self._embedder
        batches = [missing[start : start + at_once] for start in range(0, len(missing), at_once)]

        def cut(batch: list[tuple[str, Path]]) -> np.ndarray:
            return np.concatenate([self._views(path, name, wanted[name]) for name, path in batch])

        def compute(images: np.ndarray) -> np.ndarray:
            parts = [embed(images[start : start + at_once]) for start in range(0, len(images), at_once)]
            with np.errstate(over="ignore"):  # what is too great for the kept type is for the caller to see
                return np.concatenate(parts).astype(self.dtype, order="C")  # safetensors writes memory as it lies

        if shared:  # each thread reads photos and computes their features
            found = in_threads(lambda batch: compute(cut(batch)), batches, ahead=8)
        else:  # threads read ahead of the network
            found = in_threads(cut, batches, ahead=2)
        done = 0
        with closing(found):
            for batch, given in zip(batches, found, strict=True):
                rows = iter(given if shared else compute(given))
                for name, _ in batch:
                    for view in wanted[name]:
                        computed[view][name] = next(rows)
                done += len(batch)
                if progress:
                    progress(done, len(missing))

    def _views(self, path: Path, name: str, views: list[int]) -> np.ndarray:
        """uint8 (V, px, px, 3): the views of one photo."""
        photo = self.preprocess.open(path)
        smaller = shrunk(photo, self.preprocess) if any(views) else photo
        cut = []
        for view in views:
            if not view:  # shrinking is the first half of "crop"
                cut.append(self.preprocess.fit(smaller if self.preprocess.resize == "crop" else photo))
                continue
            rng = np.random.default_rng([int(name[:15], 16), view])
            image = augment.random_crops([np.array(smaller)], self.preprocess.image_px, self.min_area, rng)
            cut.append((augment.flip(image, rng) if self.flip else image)[0].permute(1, 2, 0).numpy())
        return np.stack(cut)


class _Embedder(NamedTuple):
    """embed: uint8 RGB (B, px, px, 3) -> float32 (B, *shape).  at_once: the B that it is best at.

    shared: whether threads may call it at once, each computing alone.
    """

    embed: Callable[[np.ndarray], np.ndarray]
    at_once: int
    shared: bool


def by_onnxruntime(device: torch.device, num_images: int) -> bool:
    """Whether features of so many images are computed by onnxruntime: on a CPU, where it is installed, if it pays."""
    parts = ("onnxruntime", "onnx")
    return device.type == "cpu" and num_images >= _WORTH_CONVERTING and all(map(importlib.util.find_spec, parts))


def _embedder(net: Net, preprocess: Preprocess, precision: str, device: torch.device, num_images: int) -> _Embedder:
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
    exact = _torch_embedder(net, preprocess, "32-true", device).embed(probe)
    found = by_onnx.embed(probe)
    same = found.shape == exact.shape and np.abs(found - exact).max() <= _SAME * max(1.0, np.abs(exact).max())
    return by_onnx if same else by_torch


def _onnx_embedder(net: Net, preprocess: Preprocess) -> _Embedder:
    """onnxruntime runs MobileNetV2 at two to four times torch's rate on a CPU; the file is made in two seconds.

    It is made by torch's older exporter, for one batch size: that takes a quarter of the newer one's time, and gives
    the same rate. Whether it computes the same is tried.
    """
    from handlens.run import onnx_runtime

    headless = copy.deepcopy(net).cpu().float().eval()
    headless.classifier[-1] = nn.Identity()  # its "logits" are what the last layer would have read
    headless.familiar = None
    at_once, px = ALONE, preprocess.image_px  # more do not fit into the caches
    file = io.BytesIO()
    with converting("onnx", net), torch.inference_mode():
        torch.onnx.export(
            FromPixels(fold_batch_norm(headless), preprocess).eval(),
            (torch.zeros(at_once, px, px, 3, dtype=torch.uint8),),
            file,  # type: ignore[arg-type]
            dynamo=False,
            input_names=["photos"],
            output_names=["probabilities", "logits"],
        )
    infer = onnx_runtime.start({onnx_runtime.FILE: file.getvalue()}, threads=1)[0]

    def embed(images: np.ndarray) -> np.ndarray:
        missing = at_once - len(images)
        return infer(np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images)[1][: len(images)]

    return _Embedder(embed, at_once, shared=True)


def _torch_embedder(net: Net, preprocess: Preprocess, precision: str, device: torch.device) -> _Embedder:
    wrapped = copy.deepcopy(net).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    dtype = torch.float16 if precision.startswith("16") else torch.bfloat16

    def embed(images: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(preprocess.normalise(images)).to(device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=precision != "32-true"):
            vectors: np.ndarray = wrapped.embed(x).float().cpu().numpy()
        return vectors

    return _Embedder(embed, TOGETHER if device.type == "cpu" else 64, shared=False)


def _read(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> dict[str, np.ndarray]:
    """Features by the photo's SHA-256, none if they are of another shape or type."""
    try:
        stored = safetensors.numpy.load_file(path)
        photos, vectors = stored["photos"], stored["vectors"]
    except (OSError, SafetensorError, ValueError, KeyError):
        return {}
    if photos.shape != (len(vectors), 32) or vectors.shape != (len(photos), *shape) or vectors.dtype != dtype:
        return {}
    return {photo.tobytes().hex(): vector for photo, vector in zip(photos, vectors, strict=True)}


def _write(path: Path, known: dict[str, np.ndarray]) -> None:
    photos = np.frombuffer(bytes.fromhex("".join(known)), np.uint8).reshape(-1, 32)
    content = safetensors.numpy.save({"photos": photos, "vectors": np.stack(list(known.values()))})
    try:
        with files.atomic(path) as file:
            file.write(content)
    except (OSError, HandlensError):
        pass  # a full or read-only disk costs the next run some time, nothing else
