"""The pixel contract: from a photo's file to what a network sees."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin
from sklearn import preprocessing

from handlens import preprocess
from handlens.errors import HandlensError, PhotoError
from handlens.preprocess import Normalisation, Preprocess, open_photo, shorter_side_to

SIZES = [(1, 1), (1, 5000), (5000, 1), (3, 2), (224, 224), (256, 256), (257, 341), (500, 375), (333, 500), (640, 97)]
OWN = get_args(Normalisation)[1:]  # those of each photo by itself
ALL_MODES = [Preprocess(image_px=64, resize_px=73, resize=mode) for mode in ("crop", "letterbox", "squash")]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture like a photo: blotches of many sizes, a little noise, every channel different."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0)
    for cells in (3, 9, 27, 81):
        coarse = rng.normal(size=(cells, cells, 3)) * 90 / cells**0.5
        for c in range(3):
            layer = Image.fromarray(coarse[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
            total[..., c] += np.asarray(layer)
    return Image.fromarray(np.clip(total + rng.normal(size=total.shape) * 4, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def difference(a: Any, b: Any) -> np.ndarray:
    return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int))


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("preprocess", ALL_MODES, ids=lambda p: p.resize)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_every_photo_becomes_one_square(size: tuple[int, int], preprocess: Preprocess, interpolation: Any) -> None:
    pixels = dataclasses.replace(preprocess, interpolation=interpolation).fit(Image.new("RGB", size, (10, 200, 30)))
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    assert set(map(tuple, pixels.reshape(-1, 3).tolist())) <= {(10, 200, 30), (114, 114, 114)}


@pytest.mark.parametrize("size", SIZES[1:])
def test_letterbox_keeps_the_shape_and_centres_it(size: tuple[int, int]) -> None:
    pixels = Preprocess(image_px=64, resize="letterbox").fit(Image.new("RGB", size, (255, 0, 0)))
    inside = (pixels == (255, 0, 0)).all(axis=-1)
    height, width = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    scale = 64 / max(size)
    assert (width, height) == (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    assert inside.sum() == width * height
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert abs((rows[0]) - (63 - rows[-1])) <= 1
    assert abs((columns[0]) - (63 - columns[-1])) <= 1


def test_squash_equals_a_plain_resize() -> None:
    image = picture(90, 50)
    expected = image.resize((32, 32), Image.Resampling.BILINEAR)
    assert not difference(Preprocess(image_px=32, resize="squash").fit(image), expected).any()


@pytest.mark.parametrize("size", [*SIZES, (4000, 3000), (3000, 4001)])
@pytest.mark.parametrize(("px", "resize_px"), [(224, 256), (224, 224), (192, 219), (299, 342)])
def test_crop_equals_torchvision(size: tuple[int, int], px: int, resize_px: int) -> None:
    import torch
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional

    width, height = shorter_side_to(*size, resize_px)
    no_memory = torch.empty((3, size[1], size[0]), device="meta")
    assert tuple(functional.resize(no_memory, [resize_px]).shape) == (3, height, width)
    if max(width, height) > 16 * resize_px or max(size) > 1000:
        return  # the thin ones have a test of their own; large ones would only be slow
    image = picture(*size)
    for name in ("bilinear", "bicubic", "lanczos"):
        filter_ = v2.InterpolationMode(name)
        resized = v2.Resize(resize_px, filter_, antialias=True)(image)
        left, top = (width - px) // 2, (height - px) // 2  # torchvision rounds half to even, here down
        expected = functional.crop(resized, top, left, px, px)
        pixels = Preprocess(image_px=px, resize_px=resize_px, interpolation=name).fit(image)  # type: ignore[arg-type]
        assert not difference(pixels, expected).any()
        if (width - px) % 4 != 3 and (height - px) % 4 != 3:
            assert not difference(pixels, v2.CenterCrop(px)(resized)).any()


@pytest.mark.parametrize("size", [(3, 60), (60, 3), (2, 90), (7, 200)])
def test_thin_strips_are_cut_as_if_resized_whole(size: tuple[int, int]) -> None:
    image = picture(*size)
    preprocess = Preprocess(image_px=48, resize_px=56)
    width, height = shorter_side_to(*size, 56)
    left, top = (width - 48) // 2, (height - 48) // 2
    assert max(width, height) > 16 * 56  # so that the short way is taken
    whole = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 48, top + 48))
    assert difference(preprocess.fit(image), whole).max() <= 1


def test_a_strip_of_one_pixel_takes_no_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    strip = Image.new("RGB", (1, 60000), (1, 2, 3))  # resized whole it would be 256 x 15,360,000: 16 GB
    resize = Image.Image.resize

    def small_only(image: Image.Image, size: tuple[int, int], *args: Any, **options: Any) -> Image.Image:
        assert size == (224, 224)
        return resize(image, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", small_only)
    assert (Preprocess().fit(strip) == (1, 2, 3)).all()


def test_at_keeps_the_share_of_the_crop() -> None:
    assert Preprocess().at(224) == Preprocess()
    assert (Preprocess().at(192).image_px, Preprocess().at(192).resize_px) == (192, 219)
    assert Preprocess(image_px=224, resize_px=224).at(96).resize_px == 96


# Formats --------------------------------------------------------------------------------------------------------------

LOSSLESS = [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})]


@pytest.mark.parametrize(("format_", "options"), LOSSLESS)
@pytest.mark.parametrize("size", [(31, 20), (1, 1), (1, 300)])
def test_lossless_formats_come_back_exactly(format_: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    image = picture(*size)
    photo = open_photo(encoded(image, format_, **options))
    assert photo.mode == "RGB"
    assert not difference(photo, image).any()


@pytest.mark.parametrize(("format_", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
@pytest.mark.parametrize("progressive", [False, True])
def test_lossy_formats_come_back_nearly(format_: str, options: dict[str, Any], progressive: bool) -> None:
    image = picture(200, 150).resize((400, 300), Image.Resampling.BICUBIC)
    more = {"progressive": True} if progressive and format_ == "JPEG" else {}
    assert difference(open_photo(encoded(image, format_, **options, **more)), image).mean() < 4


def test_a_path_bytes_and_an_open_file_are_the_same(tmp_path: Path) -> None:
    data = encoded(picture(40, 30), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        results = [Preprocess().load(source) for source in (path, str(path), data, file, io.BytesIO(data))]
    assert all((result == results[0]).all() for result in results)


def test_first_frame_of_a_gif() -> None:
    red, blue = Image.new("RGB", (20, 10), (255, 0, 0)), Image.new("RGB", (20, 10), (0, 0, 255))
    data = encoded(red, "GIF", save_all=True, append_images=[blue], duration=50)
    assert (np.asarray(open_photo(data)) == (255, 0, 0)).all()


def test_a_phones_jpeg_with_a_second_picture() -> None:
    first, second = picture(64, 48, 1), picture(64, 48, 2)
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert difference(open_photo(data), open_photo(encoded(first, "JPEG", quality=95))).max() == 0
    large = encoded(first.resize((1280, 960)), "MPO", save_all=True, append_images=[second])
    assert open_photo(large, at_least_px=100).size == (320, 240)


def test_grey_and_one_bit() -> None:
    grey = picture(30, 20).convert("L")
    for format_ in ("PNG", "JPEG", "BMP", "TIFF"):
        pixels = np.asarray(open_photo(encoded(grey, format_)))
        assert (pixels[..., 0] == pixels[..., 1]).all()
        assert difference(pixels[..., 0], grey).mean() < 6
    checks = Image.fromarray((np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)).convert("1")
    assert (np.asarray(open_photo(encoded(checks, "PNG")))[..., 1] == np.asarray(checks) * 255).all()


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bits_become_their_high_byte(format_: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = np.asarray(open_photo(encoded(Image.fromarray(values), format_)))
    assert (pixels == (values >> 8)[..., None]).all()


def test_floats_up_to_one_are_not_black() -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    tiff = io.BytesIO()
    Image.fromarray(values).save(tiff, "TIFF")
    seen = np.asarray(open_photo(tiff.getvalue()))[..., 0]
    assert np.abs(seen - 255 * values).max() <= 1
    black = io.BytesIO()
    Image.fromarray(0 * values).save(black, "TIFF")
    assert not np.asarray(open_photo(black.getvalue())).any()


def test_thirty_two_bits_and_floats() -> None:
    wide = Image.fromarray(np.linspace(0, 65535, 400).astype(np.int32).reshape(20, 20))
    assert difference(open_photo(encoded(wide, "TIFF")), (np.asarray(wide) // 257)[..., None]).max() <= 1
    values = np.linspace(-5, 255, 400, dtype=np.float32).reshape(20, 20)
    values[0, 0] = np.nan
    pixels = np.asarray(open_photo(encoded(Image.fromarray(values), "TIFF")))
    assert (pixels[..., 0] == np.clip(np.nan_to_num(values), 0, 255).astype(np.uint8)).all()


def test_what_is_transparent_lies_over_white() -> None:
    rgba = np.asarray(picture(32, 16).convert("RGBA")).copy()
    rgba[..., 3] = np.linspace(0, 255, 32).astype(np.uint8)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    for format_, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert difference(open_photo(encoded(Image.fromarray(rgba), format_, **options)), expected).max() <= 1
    la = Image.fromarray(rgba).convert("LA")
    grey = np.asarray(la).astype(float)
    expected = (grey[..., :1] * alpha + 255 * (1 - alpha)).repeat(3, axis=2)
    assert difference(open_photo(encoded(la, "PNG")), expected).max() <= 1


@pytest.mark.parametrize("format_", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_colour(format_: str) -> None:
    indices = np.zeros((8, 8), np.uint8)
    indices[:4] = 1
    image = Image.fromarray(indices).convert("P")
    image.putpalette([200, 10, 10, 10, 10, 200] + [0] * 762)
    pixels = np.asarray(open_photo(encoded(image, format_, transparency=1)))
    assert (pixels[:4] == 255).all()
    assert (pixels[4:] == (200, 10, 10)).all()
    assert (np.asarray(open_photo(encoded(image, format_)))[:4] == (10, 10, 200)).all()


def test_an_rgb_png_with_a_transparent_colour() -> None:
    image = Image.new("RGB", (4, 4), (9, 9, 9))
    image.putpixel((0, 0), (1, 2, 3))
    pixels = np.asarray(open_photo(encoded(image, "PNG", transparency=(1, 2, 3))))
    assert (pixels[0, 0] == 255).all()
    assert (pixels[1, 1] == 9).all()


def transparent() -> dict[str, Image.Image]:
    """16 x 257 pixels of each kind that may be transparent, as files give them."""
    rgba = np.asarray(picture(16, 257).convert("RGBA")).copy()
    rgba[..., 3] = np.arange(16 * 257).reshape(257, 16) % 256
    whole = Image.fromarray(rgba)
    palette = whole.convert("RGB").quantize(64)

    def stored(image: Image.Image, format_: str, **options: Any) -> Image.Image:
        return Image.open(io.BytesIO(encoded(image, format_, **options)))

    found = {mode: whole.convert(mode) for mode in ("RGBA", "LA", "RGBa")}
    found["PA"] = palette.convert("PA")
    found["PA"].putalpha(whole.getchannel("A"))
    found["P, of each colour"] = stored(palette, "PNG", transparency=bytes(range(0, 256, 4)))
    found["P, one colour"] = stored(palette, "GIF", transparency=5)
    found["RGB"] = stored(whole.convert("RGB"), "PNG", transparency=whole.convert("RGB").getpixel((3, 3)))
    found["L"] = stored(whole.convert("L"), "PNG", transparency=whole.convert("L").getpixel((3, 3)))
    return found


@pytest.mark.parametrize("height", [1, 255, 256, 257])
@pytest.mark.parametrize("kind", transparent())
def test_what_is_transparent_is_laid_over_white_in_strips(
    kind: str, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = transparent()[kind].crop((0, 0, 16, height))
    rgba = image.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    assert height < 257 or difference(expected, rgba.convert("RGB")).any()
    composite, rows = Image.alpha_composite, []

    def strip(below: Image.Image, above: Image.Image) -> Image.Image:
        rows.append(above.height)
        return composite(below, above)

    monkeypatch.setattr(Image, "alpha_composite", strip)
    monkeypatch.setattr(preprocess, "_STRIP_PX", 16 * 256)
    made = preprocess._to_rgb(image)
    assert made.mode == "RGB" and made.tobytes() == expected.tobytes()
    assert rows == ([256, 1] if height == 257 else [height])


def test_cmyk_jpeg() -> None:
    cmyk = picture(64, 48).convert("CMYK")
    pixels = open_photo(encoded(cmyk, "JPEG", quality=95))
    assert pixels.mode == "RGB"
    assert difference(pixels, cmyk.convert("RGB")).mean() < 6


# What was photographed upright, as a camera in each of the eight positions would store it.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", sorted(STORED))
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation(orientation: int, format_: str) -> None:
    upright = np.asarray(picture(24, 16).resize((96, 64), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}[format_]
    photo = open_photo(encoded(stored, format_, exif=exif, **options))
    assert photo.size == (96, 64)
    assert difference(photo, upright).mean() < (1.5 if format_ == "JPEG" else 1e-9)


def test_orientation_is_applied_before_the_crop_and_to_reduced_photos() -> None:
    upright = picture(80, 60).resize((1600, 1200), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(upright), 1)))
    turned = Preprocess(image_px=64, resize_px=73).load(encoded(stored, "JPEG", quality=95, exif=exif))
    assert difference(turned, Preprocess(image_px=64, resize_px=73).fit(upright)).mean() < 1.5


def test_a_senseless_orientation_is_no_error() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 99
    assert open_photo(encoded(picture(20, 10), "JPEG", exif=exif)).size == (20, 10)


@pytest.mark.parametrize("tag", [ExifTags.Base.XResolution, ExifTags.Base.ImageWidth, ExifTags.Base.YCbCrPositioning])
@pytest.mark.parametrize("orientation", [1, 6])
def test_odd_metadata_is_no_matter(tag: int, orientation: int) -> None:
    """A tag of another type than its own, as some phones' programs leave behind: Pillow cannot write it anew."""
    entries = sorted([(0x112, 3, struct.pack("<HH", orientation, 0)), (tag, 2, b"abc\0")])
    rows = b"".join(struct.pack("<HHI", at, kind, 1 if kind == 3 else 4) + value for at, kind, value in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4)
    assert open_photo(encoded(picture(20, 10), "JPEG", exif=exif)).size == ((10, 20) if orientation == 6 else (20, 10))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0no exif at all", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_metadata_is_no_matter(exif: bytes) -> None:
    assert open_photo(encoded(picture(20, 10), "JPEG", exif=exif)).size == (20, 10)


def test_orientation_is_that_of_exif_alone() -> None:
    """As browsers have it: XMP's is a second opinion."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert open_photo(encoded(picture(20, 10), "JPEG", xmp=xmp)).size == (20, 10)


def tiff(entries: list[tuple[int, int, bytes]], after: bytes = b"", big: bool = False) -> bytes:
    """A TIFF with these tags (tag, type, values), each longer than what fits beside it, or one number."""
    sizes, word = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8}, 8 if big else 4
    wide, head = (
        ("Q", struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16)) if big else ("I", struct.pack("<2sHI", b"II", 42, 8))
    )
    rows, blob = b"", b""
    begin = len(head) + (8 if big else 2) + len(entries) * (4 + 2 * word) + word
    for tag, kind, values in sorted(entries):
        rows += struct.pack(f"<HH{wide}", tag, kind, len(values) // sizes[kind])
        if len(values) <= word:
            rows += values.ljust(word, b"\0")
        else:
            rows += struct.pack(f"<{wide}", begin + len(blob))
            blob += values
    count = struct.pack("<Q" if big else "<H", len(entries))
    return head + count + rows + bytes(word) + blob + after


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("what", ["tiles", "strips", "rationals"])
def test_tiffs_that_would_take_long_are_refused_where_pixels_are_bounded(what: str, big: bool) -> None:
    """Their size by the header is 64 x 64."""
    four = struct.Struct("<I").pack
    tags = [(256, 4, four(64)), (257, 4, four(64)), (258, 3, struct.pack("<H", 8)), (259, 3, struct.pack("<H", 1)),
            (262, 3, struct.pack("<H", 1)), (277, 3, struct.pack("<H", 1)), (278, 4, four(64))]  # fmt: skip
    tags += {
        "tiles": [(322, 4, four(26_000)), (323, 4, four(26_000)), (324, 4, four(8)), (325, 4, four(4096))],
        "strips": [(273, 4, four(8) * 100_000), (279, 4, four(64))],
        "rationals": [(273, 4, four(8)), (279, 4, four(4096)), (282, 5, four(1) * 200_000)],
    }[what]
    with pytest.raises(PhotoError, match=r"TIFF .* save it anew"):
        open_photo(tiff(tags, bytes(5000), big), most_pixels=50_000_000)
    open_photo(encoded(picture(20, 10), "TIFF"), most_pixels=50_000_000)
    for cut in range(0, 200, 7):  # damaged ones are left to Pillow
        with pytest.raises(PhotoError):
            open_photo(tiff(tags, b"", big)[: 9 + cut], most_pixels=50_000_000)


@pytest.mark.parametrize(("marker", "count"), [(b"\xff\xe1", 20), (b"\xff\xfe", 2_100)])
def test_jpegs_of_many_segments_are_refused_where_pixels_are_bounded(marker: bytes, count: int) -> None:
    """Pillow joins them one by one, which takes minutes for some megabytes."""
    photo = encoded(picture(20, 10), "JPEG")
    segment = marker + struct.pack(">H", 18) + b"Exif\0\0" + bytes(10)
    with pytest.raises(PhotoError, match="JPEG of too many segments; save it anew"):
        open_photo(photo[:2] + count * segment + photo[2:], most_pixels=50_000_000)
    assert open_photo(photo[:2] + count // 2 * segment + photo[2:], most_pixels=50_000_000).size == (20, 10)


def test_huge_metadata_of_a_png_is_passed_over() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    long = exif.tobytes() + bytes(2 << 20)
    assert open_photo(encoded(picture(20, 10), "PNG", exif=long)).size == (20, 10)


def test_heic_under_any_name(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    image = picture(100, 60).resize((200, 120), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    heif.from_pillow(image).save(file, quality=95)
    for source in (file.getvalue(), tmp_path / "IMG_1.HEIC", tmp_path / "renamed.jpg", io.BytesIO(file.getvalue())):
        if isinstance(source, Path):
            source.write_bytes(file.getvalue())
        assert difference(open_photo(source), image).mean() < 5


def test_heic_without_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(64))
    with pytest.raises(PhotoError, match=r'a\.heic is HEIC.*pip install "handlens\[heic\]"'):
        open_photo(tmp_path / "a.heic")


@pytest.mark.parametrize("name", ["with space.png", "雏菊 花.png", "🌼 daisy.png", "%41 #1 'q'.png"])
def test_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / f"folder of {name}"
    folder.mkdir()
    picture(9, 9).save(folder / name)
    assert open_photo(folder / name).size == (9, 9)


# Reduced scale --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quality", "subsampling"), [(92, 2), (75, 2), (95, 0)])
def test_large_jpegs_at_reduced_scale_look_the_same(quality: int, subsampling: int) -> None:
    photo = picture(1000, 750, seed=quality).resize((4000, 3000), Image.Resampling.BICUBIC)
    data = encoded(photo, "JPEG", quality=quality, subsampling=subsampling)
    assert open_photo(data, at_least_px=256).size == (1000, 750)  # a quarter: 750 is still twice 256
    full = open_photo(data)
    assert full.size == (4000, 3000)
    for options in ({}, {"interpolation": "bicubic"}, {"interpolation": "lanczos"}, {"resize": "letterbox"}):
        preprocess = Preprocess(**options)  # type: ignore[arg-type]
        off = difference(preprocess.load(data), preprocess.fit(full))
        assert off.mean() < 0.4, options
        assert off.max() <= 5, options


def test_a_real_photo_at_reduced_scale_looks_the_same(shared: Path) -> None:
    folder = shared / "data" / "flower_photos"
    if not folder.is_dir():
        pytest.skip("no flower photos in the shared folder")
    for path in sorted(folder.glob("*/*.jpg"))[::900]:
        photo = Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
        data = encoded(photo, "JPEG", quality=92)
        off = difference(Preprocess().load(data), Preprocess().fit(open_photo(data)))
        assert off.mean() < 0.7
        assert off.max() <= 8


@pytest.mark.parametrize("size", [(2000, 1023), (1023, 1023), (500, 375), (300, 5000)])
def test_smaller_photos_are_never_reduced(size: tuple[int, int]) -> None:
    data = encoded(picture(64, 64).resize(size, Image.Resampling.BICUBIC), "JPEG")
    assert open_photo(data, at_least_px=256).size == size
    assert not difference(open_photo(data, at_least_px=256), open_photo(data)).any()


def test_reduction_begins_at_four_times_the_size_and_only_where_pixels_are_averaged() -> None:
    data = encoded(picture(64, 64).resize((1024, 1024)), "JPEG")
    assert open_photo(data, at_least_px=256).size == (512, 512)
    assert open_photo(encoded(Image.new("RGB", (1024, 1024)), "PNG"), at_least_px=256).size == (1024, 1024)
    nearest = Preprocess(interpolation="nearest")
    assert not difference(nearest.load(data), nearest.fit(open_photo(data))).any()


# Broken ---------------------------------------------------------------------------------------------------------------


def huge_png() -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


BROKEN = {
    "empty.jpg": (b"", "is empty"),
    "text.jpg": (b"not a photo at all", "is not a photo"),
    "page.jpg": (b"<!doctype html><title>404</title>", "is not a photo"),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not a photo"),
    "half.jpg": (encoded(picture(300, 200), "JPEG")[:6000], "is damaged"),
    "half.png": (encoded(picture(300, 200), "PNG")[:9000], "is damaged"),
    "half.webp": (encoded(picture(300, 200), "WEBP")[:2000], "is (damaged|not a photo)"),
    "half.gif": (encoded(picture(300, 200), "GIF")[:9000], "is damaged"),
    "half.bmp": (encoded(picture(300, 200), "BMP")[:9000], "is damaged"),
    "half.tif": (encoded(picture(300, 200), "TIFF")[:9000], "is (damaged|not a photo)"),
    "huge.png": (huge_png(), "has too many pixels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_photos_say_so(name: str, tmp_path: Path) -> None:
    content, words = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PhotoError, match=words) as caught:
        Preprocess().load(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message
    with pytest.raises(PhotoError, match=f"^the photo {words}"):
        Preprocess().load(content)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_too_many_scans_is_not_decoded(progressive: bool) -> None:
    """Each of them goes over all pixels, and takes a few bytes only."""
    ordinary = encoded(Image.new("RGB", (2000, 2000), (9, 99, 199)), "JPEG", progressive=progressive)
    last = ordinary.rindex(b"\xff\xda")
    scan = ordinary[last:-2] if progressive else b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(1)
    bomb = ordinary[:last] + scan * 1250 + ordinary[-2:]
    begun = time.perf_counter()
    with pytest.raises(PhotoError, match="the photo is a JPEG of too many scans; save it anew"):
        Preprocess().load(bomb, most_pixels=50_000_000)
    assert time.perf_counter() - begun < 1
    with_a_film = ordinary + scan * 1250
    assert open_photo(with_a_film, most_pixels=50_000_000).getpixel((9, 9)) == pytest.approx((9, 99, 199), abs=3)


def test_a_photo_of_ninety_million_pixels_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.new("L", (10_000, 9_000)).save(tmp_path / "wide.jpg")
    code = f"from handlens.preprocess import open_photo; open_photo({str(tmp_path / 'wide.jpg')!r}, 64)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_odd_metadata_is_no_warning(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "odd.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    read = f"open_photo({str(tmp_path / 'odd.jpg')!r})"
    code = "from concurrent.futures import ThreadPoolExecutor; from handlens.preprocess import open_photo; "
    code += f"[each.result() for each in [ThreadPoolExecutor(2).submit(lambda: {read}) for _ in range(4)]]"
    plain = f"from PIL import Image; Image.open({str(tmp_path / 'odd.jpg')!r}).getexif()"
    for script, told in ((plain, True), (code, False)):
        call = [sys.executable, "-c", script]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        assert ("Corrupt EXIF data" in done.stderr, bool(done.stderr)) == (told, told)


def test_missing_and_folders(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="does not exist"):
        open_photo(tmp_path / "none.jpg")
    with pytest.raises(PhotoError, match="is a folder"):
        open_photo(tmp_path)


@pytest.mark.parametrize("given", [Image.new("RGB", (9, 9)), np.zeros((9, 9, 3), np.uint8), bytearray(b"x"), None, 5])
def test_what_is_no_file_is_not_called_a_damaged_photo(given: Any) -> None:
    with pytest.raises(HandlensError, match=f"or an open file, not a {type(given).__name__}") as refused:
        Preprocess().load(given)
    assert not isinstance(refused.value, PhotoError)


# The value ------------------------------------------------------------------------------------------------------------


def test_round_trip_through_json() -> None:
    preprocess = Preprocess(image_px=96, resize="letterbox", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), channels="bgr")
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


BAD_FIELDS = {
    "image_px": [0, -1, 10_000, "224", 2.5, True, None],
    "resize": ["stretch", None, ["crop"]],
    "resize_px": [100, 10**9, "256", True, None],
    "interpolation": ["box", None, ["bilinear"]],
    "normalisation": ["minmax", "", None, ["l2"]],
    "mean": [[0.5], [0.5, 0.5, "x"], [0.5, 0.5, float("nan")], 0.5, None],
    "std": [[1, 1, 0], [1, 1, -1], [1, 1], [1, 1, float("inf")], [float("nan"), 1, 1]],
    "channels": ["rbg", "", None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_FIELDS.items() for value in values])
def test_bad_fields_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(HandlensError, match=rf"^{name} is .*, expected "):
        Preprocess.from_dict(Preprocess().to_dict() | {name: value})


def test_the_message_names_field_value_and_range() -> None:
    with pytest.raises(HandlensError, match="image_px is 0, expected 1 to 8192"):
        Preprocess(image_px=0)
    wrong: Any = "leterbox"
    with pytest.raises(HandlensError, match=r"expected crop, letterbox or squash; did you mean letterbox\?"):
        Preprocess(resize=wrong)


@pytest.mark.parametrize("values", [{}, [], None, "x", Preprocess().to_dict() | {"blur": 1}])
def test_missing_and_unknown_fields_are_refused(values: Any) -> None:
    with pytest.raises(HandlensError, match="has the fields"):
        Preprocess.from_dict(values)


def test_normalise_is_its_formula() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    preprocess = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    result = preprocess.normalise(images)
    assert result.shape == (2, 3, 5, 7)
    assert result.dtype == np.float32
    assert result.flags["C_CONTIGUOUS"]
    for c in range(3):
        expected = (images[..., c] / 255 - preprocess.mean[c]) / preprocess.std[c]
        np.testing.assert_allclose(result[:, c], expected, atol=1e-6)


def test_normalise_in_bgr_keeps_each_channels_own_mean() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 3), dtype=np.uint8)
    options = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    rgb, bgr = Preprocess(**options).normalise(images), Preprocess(**options, channels="bgr").normalise(images)  # type: ignore[arg-type]
    assert (rgb[:, ::-1] == bgr).all()


def own_range(values: np.ndarray, normalisation: str) -> np.ndarray:
    """One photo's values, in [0, 1], normalised by scikit-learn or by the formula."""
    flat = values.reshape(-1, 1)
    if normalisation == "min-max":
        return np.asarray(preprocessing.minmax_scale(flat)).reshape(values.shape)
    if normalisation == "z-score":
        return np.asarray(preprocessing.scale(flat)).reshape(values.shape)
    norm = {"max-abs": "max", "l2": "l2"}[normalisation]
    return np.asarray(preprocessing.normalize(flat.T, norm)).reshape(values.shape)


@pytest.mark.parametrize("normalisation", OWN)
def test_each_photo_is_normalised_by_itself(normalisation: Normalisation) -> None:
    random = np.random.default_rng(0)
    images = random.integers([[[[20]]], [[[0]]], [[[7]]]], [[[[60]]], [[[256]]], [[[201]]]], (3, 9, 8, 3)).astype(
        np.uint8
    )
    plain = Preprocess(normalisation=normalisation, mean=(0, 0, 0), std=(1, 1, 1))
    result = plain.normalise(images)
    assert result.dtype == np.float32
    for photo, values in zip(result, images, strict=True):
        np.testing.assert_allclose(photo.transpose(1, 2, 0), own_range(values / 255, normalisation), atol=1e-6)
    shifted = Preprocess(normalisation=normalisation, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), channels="bgr")
    expected = (result - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape([0.4, 0.5, 0.6], (3, 1, 1))
    np.testing.assert_allclose(shifted.normalise(images), expected[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("normalisation", OWN)
@pytest.mark.parametrize("grey", [0, 1, 255])
def test_a_photo_of_one_colour_is_finite(normalisation: Normalisation, grey: int) -> None:
    plain = Preprocess(normalisation=normalisation, mean=(0, 0, 0), std=(1, 1, 1))
    result = plain.normalise(np.full((1, 4, 4, 3), grey, np.uint8))
    assert len(np.unique(result)) == 1
    expected = {"max-abs": min(grey, 1), "l2": min(grey, 1) / np.sqrt(48)}.get(normalisation, 0)
    assert result.max() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("normalisation", OWN)
def test_half_the_light_is_the_same_to_a_photos_own_normalisation(normalisation: Normalisation) -> None:
    bright = 2 * np.random.default_rng(0).integers(0, 128, (1, 6, 6, 3), dtype=np.uint8)
    plain = Preprocess(normalisation=normalisation, mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_allclose(plain.normalise(bright), plain.normalise(bright // 2), atol=1e-6)
    assert not np.allclose(Preprocess().normalise(bright), Preprocess().normalise(bright // 2), atol=0.1)


def test_a_contract_from_before_there_was_normalisation_is_fixed() -> None:
    old = Preprocess(mean=(0.5, 0.5, 0.5)).to_dict()
    del old["normalisation"]
    assert Preprocess.from_dict(old) == Preprocess(mean=(0.5, 0.5, 0.5), normalisation="fixed")


@pytest.mark.parametrize("shape", [(224, 224, 3), (1, 3, 224, 224), (1, 4, 4, 4)])
def test_normalise_refuses_other_shapes_and_kinds(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        Preprocess().normalise(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="float32"):
        Preprocess().normalise(np.zeros((1, 4, 4, 3), np.float32))


def test_an_application_that_guards_against_bombs_keeps_its_guard() -> None:
    """Pillow's manual advises such a filter; ours, which come with the import, are asked after it."""
    script = (
        "import io, warnings\n"
        "from PIL import Image\n"
        "warnings.simplefilter('error', Image.DecompressionBombWarning)\n"
        "import handlens\n"
        "file = io.BytesIO()\n"
        "Image.new('1', (10000, 9000)).save(file, 'PNG')\n"
        "try:\n"
        "    handlens.Preprocess().load(file.getvalue())\n"
        "except handlens.errors.PhotoError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "too many pixels to be decoded safely" in done.stdout


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Image.new("L", (40, 30)), "in mode L"),
        (Image.new("HSV", (40, 30)), "in mode HSV"),
        (np.zeros((30, 40, 3), np.uint8), "as ndarray"),
    ],
)
def test_fit_takes_rgb_images_alone(given: Any, told: str) -> None:
    with pytest.raises(HandlensError, match=f"{told}, expected a Pillow image in RGB"):
        Preprocess().fit(given)


class Stream(io.RawIOBase):
    """As a connection gives its bytes: once, from the first to the last."""

    def __init__(self, content: bytes) -> None:
        self.rest = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.rest.readinto(buffer)


def test_a_stream_that_goes_forward_only() -> None:
    photo = encoded(picture(40, 30), "PNG")
    assert np.array_equal(Preprocess().load(Stream(photo)), Preprocess().load(photo))
    with pytest.raises(PhotoError, match="the photo is not a photo that can be read; give all of its bytes"):
        Preprocess().load(Stream(b"a page that says 404"))


def test_the_first_heic_photo_has_the_limits_of_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(picture(100, 60)).save(file)
    for _ in range(2):
        with pytest.raises(PhotoError, match=r"100 x 60 pixels, the limit is 0\.005 million"):
            monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)  # registered when the first one comes
            open_photo(file.getvalue(), most_pixels=5000)


def test_orientation_of_a_png_is_that_of_exif_alone() -> None:
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    assert open_photo(encoded(picture(20, 10), "PNG", pnginfo=info)).size == (20, 10)


@pytest.mark.parametrize("resize", ["letterbox", "squash"])
def test_only_a_crop_asks_for_a_longer_side(resize: Any) -> None:
    assert Preprocess(image_px=320, resize=resize).image_px == 320  # resize_px, 256, is not used
    with pytest.raises(HandlensError, match=r"resize_px is 256, expected at least image_px \(320\)"):
        Preprocess(image_px=320)


@pytest.mark.parametrize(
    ("error", "words"),
    [(PermissionError(13, "no"), "may not be read; change its permissions"),
     (MemoryError(), "is too large for this machine's memory; make it smaller first")],
)  # fmt: skip
def test_a_whole_photo_is_not_called_damaged(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(preprocess.Image, "open", fails)
    with pytest.raises(PhotoError, match=f"^a.jpg {words}$"):
        open_photo("a.jpg")


def test_tiffs_of_the_other_byte_order_are_bounded_too() -> None:
    tags = [(256, 4, (64,)), (257, 4, (64,)), (322, 4, (26_000,)), (323, 4, (26_000,))]
    rows = b"".join(struct.pack(">HHII", tag, kind, 1, *values) for tag, kind, values in tags)
    with pytest.raises(PhotoError, match="TIFF of too large tiles; save it anew"):
        open_photo(struct.pack(">2sHIH", b"MM", 42, 8, len(tags)) + rows + bytes(5000), most_pixels=50_000_000)


def test_a_tiff_with_a_large_colour_profile_is_read_where_pixels_are_bounded() -> None:
    photo = picture(20, 10)
    for tag, kind in ((34675, 7), (700, 1), (270, 2)):  # ICC profile, XMP, description
        file = io.BytesIO()
        from PIL import TiffImagePlugin

        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[tag] = "x" * 100_000 if kind == 2 else b"x" * 100_000
        info.tagtype[tag] = kind
        photo.save(file, "TIFF", tiffinfo=info)
        assert not difference(open_photo(file.getvalue(), most_pixels=50_000_000), photo).any()


def test_a_reduced_jpeg_has_twice_what_the_resize_leaves() -> None:
    data = encoded(picture(64, 64).resize((960, 960)), "JPEG")  # 480 is twice 240, and not twice 256
    assert Preprocess().open(data).size == (960, 960)
    assert Preprocess(resize="letterbox").open(data).size == (480, 480)


def test_where_a_letterbox_lies() -> None:
    for size, box in (((100, 51), (0, 15, 64, 48)), ((51, 100), (15, 0, 48, 64))):
        pixels = Preprocess(image_px=64, resize="letterbox").fit(Image.new("RGB", size, (255, 0, 0)))
        left, top, right, bottom = box
        inside = np.zeros((64, 64), bool)
        inside[top:bottom, left:right] = True
        assert ((pixels == (255, 0, 0)).all(-1) == inside).all()  # of an odd rest the smaller half comes first


def test_the_crops_share_is_rounded_down() -> None:
    assert [Preprocess().at(px).resize_px for px in (96, 128, 160, 192)] == [109, 146, 182, 219]


def test_an_empty_open_file_is_said_to_be_empty() -> None:
    with pytest.raises(PhotoError, match=r"^the photo is empty"):
        open_photo(io.BytesIO())
