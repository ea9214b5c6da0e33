"""The pixel contract: everything that happens to a photo between its file and the network's first layer.

A `Preprocess` is one frozen value. It is stored with every checkpoint and travels from there into every place where
the network runs. This is the reference: every other path of a photo, in training, in an exported file or in a browser,
is tested against it.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from handlens.errors import HandlensError, PhotoError, not_one_of

# Pillow refuses photos of twice the size that it warns of, and that refusal is what `open_photo` tells. Of odd metadata
# (UserWarning) it warns by its own lines, naming no photo. The filters are everyone's, for `warnings.catch_warnings` is
# not for threads, which read photos here.
# Those that an application has set itself come first.
warnings.simplefilter("ignore", Image.DecompressionBombWarning, append=True)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.", append=True)

Source = str | os.PathLike[str] | bytes | IO[bytes]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Normalisation = Literal["fixed", "min-max", "z-score", "max-abs", "l2"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
GREY_LEVEL = 1 / 255  # the least that a photo's own normalisation divides by
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LETTERBOX_GREY = (114, 114, 114)
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # no others: Pillow runs Ghostscript for some
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
NEEDS_PACKAGE = "is HEIC, which needs pillow-heif"  # what is said of a photo that is not broken
_MOST_SCANNED_PX = 3e9  # of a JPEG: each of its scans goes over all pixels, and may take a few bytes
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")  # those that begin a segment, and the end
_MOST_SEGMENTS, _MOST_EXIF = 2000, 16  # of a JPEG: Pillow joins those of EXIF, 64 KB each, one by one
_MOST_VALUES = 1 << 16  # of a TIFF's tag, but bytes and text: a row each of a photo has fewer
_TURNED = {  # by the EXIF orientation: from its stored pixels to upright ones
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP_PX = 1 << 20  # of a transparent photo that are laid over white at once: each takes 16 bytes meanwhile
_THIN = 16  # a photo this many times as long as wide is cut before it is resized


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What is done to a photo, in this order: decode to upright RGB, resize, crop, scale to [0, 1], normalise.

    image_px:      height and width of what the network sees.
    resize:        "crop": the shorter side becomes `resize_px`, then the centre `image_px` square is cut out;
                   "letterbox": the longer side becomes `image_px`, grey bars fill the rest;
                   "squash": both sides become `image_px`, the shape of things is not kept.
    resize_px:     length of the shorter side before the crop; used by "crop" only. The papers use image_px / 0.875.
    interpolation: "nearest", "bilinear", "bicubic" or "lanczos", always with Pillow's antialiasing.
    normalisation: "fixed": by `mean` and `std` alone. The others first bring each photo, all its pixels and channels
                   together, to a range of its own: "min-max" its darkest value to 0 and its brightest to 1, "z-score"
                   its mean to 0 and its standard deviation to 1, "max-abs" its largest value to 1, "l2" the root of
                   its summed squares to 1. None divides by less than one grey level, so a photo of one colour is fine.
    mean, std:     of each channel: normalised = (value - mean) / std, value being pixel / 255 in [0, 1], or what
                   `normalisation` made of it.
    channels:      "rgb" or "bgr", the order in which the network takes its channels.
    """

    image_px: int = 224
    resize: Literal["crop", "letterbox", "squash"] = "crop"
    resize_px: int = 256
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    normalisation: Normalisation = "fixed"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channels: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            try:
                object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            except (TypeError, ValueError):
                raise HandlensError(f"{name} is {getattr(self, name)!r}, expected three numbers") from None
        words = (
            ("resize", ("crop", "letterbox", "squash")),
            ("interpolation", tuple(_RESAMPLING)),
            ("normalisation", NORMALISATIONS),
            ("channels", ("rgb", "bgr")),
        )
        for name, allowed in words:
            if (given := getattr(self, name)) not in allowed:
                raise not_one_of(name, str(given), allowed)
        px, resize_px = (given if type(given) is int else 0 for given in (self.image_px, self.resize_px))  # no bool
        checks = (
            (1 <= px <= 8192, "image_px", "1 to 8192"),
            (
                1 <= resize_px <= 16384 and (self.resize != "crop" or resize_px >= px),
                "resize_px",
                f"at least image_px ({self.image_px}) and at most 16384",
            ),
            (len(self.mean) == 3 and all(map(math.isfinite, self.mean)), "mean", "three numbers"),
            (len(self.std) == 3 and all(0 < value < math.inf for value in self.std), "std", "three numbers above zero"),
        )
        for ok, name, expected in checks:
            if not ok:
                raise HandlensError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    def at(self, image_px: int) -> Preprocess:
        """The same contract at another input size: the crop keeps its share of the photo."""
        resize_px = max(image_px, int(image_px * self.resize_px / self.image_px))
        return dataclasses.replace(self, image_px=image_px, resize_px=resize_px)

    def load(self, source: Source, most_pixels: int | None = None) -> np.ndarray:
        """Read a photo and cut it to size: uint8 RGB of shape (image_px, image_px, 3), not yet normalised."""
        return self.fit(self.open(source, most_pixels))

    def open(self, source: Source, most_pixels: int | None = None) -> Image.Image:
        """Read a photo as large as `fit` has use for: `open_photo`."""
        px = self.resize_px if self.resize == "crop" else self.image_px
        # "nearest" takes single pixels, which a decoder's averages would not be.
        return open_photo(source, None if self.interpolation == "nearest" else px, most_pixels)

    def fit(self, photo: Image.Image) -> np.ndarray:
        """Resize and crop an upright RGB image: uint8 of shape (image_px, image_px, 3).

        Raises HandlensError for anything else than a Pillow image in mode RGB.
        """
        if not isinstance(photo, Image.Image) or photo.mode != "RGB":
            given = f"in mode {photo.mode}" if isinstance(photo, Image.Image) else f"as {type(photo).__name__}"
            raise HandlensError(
                f"an image was given {given}, expected a Pillow image in RGB",
                'call `.convert("RGB")`, or `PIL.Image.fromarray` for an array',
            )
        width, height = photo.size
        px, filter_ = self.image_px, _RESAMPLING[self.interpolation]
        if self.resize == "squash":
            return np.asarray(photo.resize((px, px), filter_))
        if self.resize == "letterbox":
            scale = px / max(width, height)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            canvas = Image.new("RGB", (px, px), _LETTERBOX_GREY)
            canvas.paste(photo.resize(size, filter_), ((px - size[0]) // 2, (px - size[1]) // 2))
            return np.asarray(canvas)
        size = shorter_side_to(width, height, self.resize_px)
        left, top = (size[0] - px) // 2, (size[1] - px) // 2
        if max(size) > _THIN * self.resize_px:  # resizing a whole strip of 1 x 5000 pixels would take a gigabyte
            across, down = width / size[0], height / size[1]
            box = (left * across, top * down, (left + px) * across, (top + px) * down)
            return np.asarray(photo.resize((px, px), filter_, box=box))
        return np.asarray(photo.resize(size, filter_).crop((left, top, left + px, top + px)))

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """uint8 RGB (B, H, W, 3) -> float32 (B, 3, H, W) in this contract's channel order."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"expected uint8 (B, H, W, 3), got {images.dtype} {images.shape}")
        scaled = images.astype(np.float32)
        if self.normalisation != "fixed":
            scaled = _by_photo(scaled / 255, self.normalisation)
        scale, shift = self.scale_and_shift()
        scaled = scaled * scale + shift
        if self.channels == "bgr":
            scaled = scaled[..., ::-1]
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean and std as one multiplication and one addition, float32 (3,) each: x * scale + shift.

        x is a pixel, 0 to 255, where the normalisation is "fixed", else what the photo's own has made of it. Twice as
        fast as two divisions and a subtraction in every runtime, and equal to rounding.
        """
        std = np.array(self.std, np.float64)
        unit = 255.0 if self.normalisation == "fixed" else 1.0
        return (1 / (unit * std)).astype(np.float32), (-np.array(self.mean, np.float64) / std).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Read what `to_dict` wrote. Raises HandlensError on a missing or unknown field or a value out of range.

        Files from before there was `normalisation` lack it, and mean "fixed".
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or {"normalisation", *values} != names:
            given = sorted(values) if isinstance(values, dict) else values
            raise HandlensError(f"a pixel contract has the fields {sorted(names)}, this one has {given}")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise HandlensError(f"a pixel contract with a value of the wrong kind ({error})") from error


def _by_photo(images: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """float32 (B, H, W, 3) in [0, 1], each photo brought to its own range; `nets.pixels.by_photo` does it in torch."""

    def over(statistic: Callable[..., np.ndarray], values: np.ndarray, **more: Any) -> np.ndarray:
        return statistic(values, axis=(1, 2, 3), keepdims=True, **more)

    if normalisation == "fixed":
        return images
    low: np.ndarray | np.float32 = np.float32(0)
    if normalisation == "min-max":
        low = over(np.min, images)
        span = over(np.max, images) - low
    elif normalisation == "z-score":
        low = over(np.mean, images, dtype=np.float64)
        span = over(np.std, images, dtype=np.float64)
    elif normalisation == "max-abs":
        span = over(np.max, images)
    else:
        span = np.sqrt(over(np.sum, np.square(images), dtype=np.float64))
    return ((images - low) / np.maximum(span, GREY_LEVEL)).astype(np.float32)


def shorter_side_to(width: int, height: int, px: int) -> tuple[int, int]:
    """(width, height) with the shorter side `px` and the longer one int(longer * px / shorter), as torchvision."""
    if width <= height:
        return px, max(px, int(height * px / width))
    return max(px, int(width * px / height)), px


def open_photo(source: Source, at_least_px: int | None = None, most_pixels: int | None = None) -> Image.Image:
    """Decode one photo to an upright RGB image.

    Takes a path, the file's bytes or an open binary file: JPEG, PNG, WebP, BMP, TIFF, the first frame of a GIF, and
    HEIC with the `heic` extra. EXIF orientation is applied. Grey, palette and CMYK become RGB; what is transparent is
    laid over white; 16-bit grey is brought to 8 bits, and grey of floats that are 1 at most too. With `at_least_px`, a
    JPEG far larger than that is decoded at a half, quarter or eighth of its size, with the shorter side still at least
    twice `at_least_px`.
    Raises PhotoError when the photo is missing, broken, truncated, not a photo, or larger than Pillow's limit; with
    `most_pixels` also, before its pixels are read, when it has more than these, and bytes that are made so that reading
    them takes long: a JPEG of very many scans or segments, a TIFF of larger tiles or very many values. Raises
    HandlensError for what is none of the three.
    """
    if not isinstance(source, (str, os.PathLike, bytes)) and not hasattr(source, "read"):
        raise HandlensError(
            f"a photo is a path, its file's bytes or an open file, not a {type(source).__name__}",
            "for a Pillow image in RGB, call `predict_batch(preprocess.fit(image)[None])`",
        )
    name = str(source) if isinstance(source, (str, os.PathLike)) else "the photo"
    formats = (*_FORMATS, "HEIF") if "HEIF" in Image.OPEN else _FORMATS
    if most_pixels and isinstance(source, bytes):
        _refuse_slow(name, source, most_pixels)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            px = image.width * image.height
            if most_pixels and px > most_pixels:
                raise PhotoError(
                    f"{name} has {image.width} x {image.height} pixels, the limit is {most_pixels / 1e6:g} million",
                    "make it smaller first",
                )
            is_jpeg = image.format in ("JPEG", "MPO")  # MPO: a phone's JPEG with a second picture inside
            if most_pixels and is_jpeg and isinstance(source, bytes) and _scans(source) * px > _MOST_SCANNED_PX:
                raise PhotoError(f"{name} is a JPEG of too many scans", "save it anew")
            if at_least_px and is_jpeg:
                image.draft(None, shorter_side_to(*image.size, 2 * at_least_px))
            image.load()
            return _to_rgb(_upright(image))
    except PhotoError:
        raise
    except FileNotFoundError:
        raise PhotoError(f"{name} does not exist", "check the path") from None
    except IsADirectoryError:
        raise PhotoError(f"{name} is a folder, expected a photo") from None
    except PermissionError:
        raise PhotoError(f"{name} may not be read", "change its permissions") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError(f"{name} has too many pixels to be decoded safely", "make it smaller first") from error
    except UnidentifiedImageError:
        if hasattr(source, "seekable") and not source.seekable():  # read to its end, and not to be looked at again
            raise PhotoError(f"{name} is not a photo that can be read", "give all of its bytes") from None
        if _is_empty(source):
            raise PhotoError(f"{name} is empty", "replace or remove it") from None
        if "HEIF" not in formats and _is_heif(source):
            _register_heif(name)
            return open_photo(source, at_least_px, most_pixels)
        raise PhotoError(f"{name} is not a photo that can be read", "use JPEG, PNG, WebP, BMP, TIFF or GIF") from None
    except MemoryError as error:
        raise PhotoError(f"{name} is too large for this machine's memory", "make it smaller first") from error
    except Exception as error:  # on damaged files Pillow's plugins raise nearly anything
        why = "the file is truncated" if "truncated" in str(error) else str(error)
        raise PhotoError(f"{name} is damaged ({why})", "replace or remove it") from error


def _upright(image: Image.Image) -> Image.Image:
    """An image turned by its EXIF orientation; what is odd in its other metadata is no matter.

    Pillow's own `exif_transpose` writes all of the EXIF anew, which fails where a tag has an odd type, and also goes by
    XMP, which browsers do not.
    """
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)
    if len(image.info.get("exif") or b"") > _MOST_EXIF << 16:
        return image
    try:
        method = _TURNED.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on damaged EXIF Pillow raises nearly anything
        return image
    return image if method is None else image.transpose(method)


def _refuse_slow(name: str, data: bytes, most_pixels: int) -> None:
    """Raise PhotoError for a photo that takes minutes or gigabytes to read, whatever its header says of its size."""
    if data.startswith(b"\xff\xd8"):
        exif = 0
        for number, (marker, at) in enumerate(_segments(data)):
            exif += marker == b"\xe1" and data[at + 2 : at + 6] == b"Exif"
            if number >= _MOST_SEGMENTS or exif > _MOST_EXIF:
                raise PhotoError(f"{name} is a JPEG of too many segments", "save it anew")
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        tiles = {322: 0, 323: 0}  # width and height
        for tag, kind, count, value in _tiff_tags(data):
            if count > _MOST_VALUES and kind not in (1, 2, 6, 7):  # bytes and text
                raise PhotoError(f"{name} is a TIFF with too many values in a tag", "save it anew")
            tiles |= {tag: value} if tag in tiles else {}
        if tiles[322] * tiles[323] > most_pixels:
            raise PhotoError(f"{name} is a TIFF of too large tiles", "save it anew")


def _tiff_tags(data: bytes) -> list[tuple[int, int, int, int]]:
    """(tag, type, count, value where it is one number) of the first directory; none where it is damaged."""
    order, big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
    number, entry, short, wide = ("Q", 20, "H", "Q") if big else ("H", 12, "H", "I")
    try:
        at = struct.unpack_from(order + wide, data, 8 if big else 4)[0]
        count = struct.unpack_from(order + number, data, at)[0]
        at += struct.calcsize(order + number)
        found = []
        for place in range(at, min(at + entry * min(count, 4096), len(data) - entry + 1), entry):
            tag, kind, values = struct.unpack_from(f"{order}HH{wide}", data, place)
            start = place + struct.calcsize(f"{order}HH{wide}")
            found.append(
                (tag, kind, values, struct.unpack_from(order + (short if kind == 3 else wide), data, start)[0])
            )
        return found
    except struct.error:
        return []


def _scans(jpeg: bytes) -> int:
    """How many scans a JPEG has."""
    return sum(marker == b"\xda" for marker, _ in _segments(jpeg))


def _segments(jpeg: bytes) -> Iterator[tuple[bytes, int]]:
    """The marker of each segment and where its length stands, up to the end of a JPEG.

    What follows the end, such as a film or a second picture, is not decoded.
    """
    at = 2
    while (found := _JPEG_MARKER.search(jpeg, at)) and found[1] != b"\xd9":
        yield found[1], found.end()
        at = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2])


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):  # 32-bit grey, 16-bit values in most PNG and TIFF files
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        if image.mode == "F" and 0 < values.max() <= 1:  # as arithmetic likes it
            values = 255 * values
        scaled = values / (257 if values.max() > 255 else 1)
        return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        made = Image.new("RGB", image.size)
        rows = max(1, _STRIP_PX // image.width)
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
            white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
            made.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
        return made
    return image.convert("RGB") if image.mode != "RGB" else image


def _is_heif(source: Source) -> bool:
    if isinstance(source, bytes):
        start = source[:12]
    elif isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb") as file:
            start = file.read(12)
    else:
        source.seek(0)
        start = source.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def _is_empty(source: Source) -> bool:
    if isinstance(source, bytes):
        return not source
    if isinstance(source, (str, os.PathLike)):
        return os.path.getsize(source) == 0
    return source.seek(0, os.SEEK_END) == 0


def _register_heif(name: str) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise PhotoError(f"{name} {NEEDS_PACKAGE}", 'pip install "handlens[heic]"') from None
    register_heif_opener()
