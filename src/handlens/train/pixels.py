"""Training photos as pixels: decoded once, kept in memory as far as it may, cut at random for each batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from handlens import cores
from handlens.photos import Photos, batches
from handlens.preprocess import Preprocess, open_photo, shorter_side_to


def shrunk(photo: Image.Image, preprocess: Preprocess) -> Image.Image:
    """A photo with its shorter side at most the contract's `resize_px`: more has no use."""
    px = max(preprocess.resize_px, preprocess.image_px)
    if min(photo.size) <= px:
        return photo
    return photo.resize(shorter_side_to(*photo.size, px), Image.Resampling[preprocess.interpolation.upper()])


class Pixels:
    """The whole photos of a split, uint8 RGB, no larger than the pixel contract has use for.

    A photo is decoded when it is first asked for and kept until `cache_mb` megabytes are full; the rest is decoded
    each time. Raises PhotoError when a photo cannot be read.
    """

    def __init__(self, photos: Photos, preprocess: Preprocess, cache_mb: int) -> None:
        self.photos = photos
        self.preprocess = preprocess
        self._free_bytes = cache_mb * 2**20
        self._kept: dict[int, np.ndarray] = {}
        self._pool = ThreadPoolExecutor(cores.available())  # Pillow decodes outside Python's lock

    def __len__(self) -> int:
        return len(self.photos)

    def get(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The photos at `indices`, each uint8 (h, w, 3) with the shorter side at most the contract's `resize_px`."""
        missing = [index for index in dict.fromkeys(indices) if index not in self._kept]
        decoded = dict(zip(missing, self._pool.map(self._decode, missing), strict=True))
        for index, pixels in decoded.items():
            if pixels.nbytes <= self._free_bytes:
                self._kept[index] = pixels
                self._free_bytes -= pixels.nbytes
        return [self._kept[index] if index in self._kept else decoded[index] for index in indices]

    def _decode(self, index: int) -> np.ndarray:
        px = max(self.preprocess.resize_px, self.preprocess.image_px)
        return np.array(shrunk(open_photo(self.photos.path(index), at_least_px=px), self.preprocess))

    def close(self) -> None:
        """Stop the decoding threads."""
        self._pool.shutdown(cancel_futures=True)


class Fixed:
    """A split as the network will see it in use, for validation: decoded once if it fits into `cache_mb`."""

    def __init__(self, photos: Photos, preprocess: Preprocess, cache_mb: int) -> None:
        self.photos = photos
        self.preprocess = preprocess
        self._fits = len(photos) * preprocess.image_px**2 * 3 <= cache_mb * 2**20
        self._kept: list[tuple[np.ndarray, np.ndarray]] | None = None

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches in order: uint8 (B, image_px, image_px, 3) and int64 (B,)."""
        if self._kept is not None:
            yield from self._kept
            return
        seen = []
        for batch in batches(self.photos, self.preprocess, batch_size=64):
            if self._fits:
                seen.append(batch)
            yield batch
        if self._fits:
            self._kept = seen
