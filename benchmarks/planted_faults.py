"""How many planted faults `handlens examine` finds, and how many clean photos it blames:

    python benchmarks/planted_faults.py PHOTOS [--weights FILE --net NAME] [--choose]

PHOTOS is a folder of classes, such as flower_photos. Its photos are cut in two halves by their names. With --choose the
figures are those of the first half, with the strengths that the thresholds in handlens.photos were chosen by. Without,
they are those of the second half, with other strengths, and are written to benchmarks/results/planted_faults.json.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import platform
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from handlens import files, photos
from handlens.photos import near
from handlens.photos.diagnose import diagnose
from handlens.photos.examine import _FOUND

ROOT = Path(__file__).resolve().parents[1]
PLANTED = 200
Fault = Callable[[Image.Image, bytes, random.Random], tuple[bytes, str]]  # photo and its file -> a file and its suffix

# Duplicates that the photos had before anything was planted: the same pixels, or seen to be the same photo, or the same
# flower from the same place a moment later, by eye.
REAL = [
    "daisy/10993710036_2033222c91.jpg",
    "daisy/10993818044_4c19b86c82.jpg",
    "daisy/11834945233_a53b7a92ac_m.jpg",
    "daisy/19177263840_6a316ea639.jpg",
    "daisy/19178753159_a471bf4b6b.jpg",
    "daisy/9467543719_c4800becbb_m.jpg",
    "dandelion/17161833794_e1d92259d2_m.jpg",
    "dandelion/18243351371_5fda92ac0a_n.jpg",
    "dandelion/18304194360_2a4a0be631_m.jpg",
    "dandelion/18999743619_cec3f39bee.jpg",
    "dandelion/284497199_93a01f48f6.jpg",
    "dandelion/284497233_c19801752c.jpg",
    "dandelion/506659320_6fac46551e.jpg",
    "dandelion/506660896_c903cca1f0.jpg",
    "dandelion/8689302100_be76a16ccc_n.jpg",
    "dandelion/8689302980_9bd2f7b9fe_n.jpg",
    "dandelion/8978962053_0727b41d26.jpg",
    "dandelion/8979062599_86cac547b8.jpg",
    "dandelion/8979087213_28f572174c.jpg",
    "dandelion/8980145452_efbd6e3b04.jpg",
    "dandelion/8980273068_cf7e8b880a_n.jpg",
    "roses/13279526615_a3b0059bec.jpg",
    "roses/13342823005_16d3df58df_n.jpg",
    "roses/15922772266_1167a06620.jpg",
    "roses/4608559939_3487bf3b62_n.jpg",
    "roses/4609166128_b7ed49b40b_m.jpg",
    "roses/4609168052_3d4e1d3804_n.jpg",
    "sunflowers/14741813110_94964c39e2_n.jpg",
    "sunflowers/14741907467_fab96f3b2b_n.jpg",
    "sunflowers/14889392928_9742aed45b_m.jpg",
    "sunflowers/15066430311_fb57fa92b0_m.jpg",
    "sunflowers/15069459615_7e0fd61914_n.jpg",
    "sunflowers/15072973261_73e2912ef2_n.jpg",
    "sunflowers/17433282043_441b0a07f4_n.jpg",
    "sunflowers/22429946721_e17a12cb39_n.jpg",
    "sunflowers/6606809995_edee55b770_m.jpg",
    "sunflowers/6606813305_c992231d29_m.jpg",
    "tulips/12916135413_dafcf3089e_n.jpg",
    "tulips/12916441224_2ed63596f8_n.jpg",
    "tulips/15922772266_1167a06620.jpg",
]


def saved(photo: Image.Image, quality: int = 85, format_: str = "JPEG", **more: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, format_, quality=quality, **more)
    return file.getvalue()


def jpeg(change: Callable[[Image.Image, random.Random], Image.Image], quality: int = 85) -> Fault:
    return lambda photo, data, rng: (saved(change(photo, rng), quality), ".jpg")


def scaled(photo: Image.Image, factor: float) -> Image.Image:
    return photo.resize(tuple(max(8, round(side * factor)) for side in photo.size), Image.Resampling.BICUBIC)


def cropped(photo: Image.Image, kept: float, rng: random.Random) -> Image.Image:
    width, height = (round(side * kept) for side in photo.size)
    left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
    return photo.crop((left, top, left + width, top + height))


def noise(photo: Image.Image, spread: float, rng: random.Random) -> Image.Image:
    """A blank of the photo's mean colour, with a camera's noise."""
    values = np.random.default_rng(rng.randrange(1 << 32)).normal(0, spread, (photo.height, photo.width, 1))
    return Image.fromarray(np.clip(np.asarray(photo).mean((0, 1)) + values, 0, 255).astype(np.uint8))


def resize(factor: float) -> Fault:
    return jpeg(lambda photo, _: scaled(photo, factor))


def mirror(factor: float, quality: int) -> Fault:
    return jpeg(lambda photo, _: scaled(ImageOps.mirror(photo), factor), quality)


def crop(kept: float) -> Fault:
    return jpeg(lambda photo, rng: cropped(photo, kept, rng))


def light(factor: float) -> Fault:
    return jpeg(lambda photo, _: ImageEnhance.Brightness(photo).enhance(factor))


def contrast(factor: float) -> Fault:
    return jpeg(lambda photo, _: ImageEnhance.Contrast(photo).enhance(factor))


def gamma(power: float) -> Fault:
    return jpeg(lambda photo, _: photo.point(lambda value: round(255 * (value / 255) ** power)))


def blur(radius: float) -> Fault:
    return jpeg(lambda photo, _: photo.filter(ImageFilter.GaussianBlur(radius)))


def washed(factor: float) -> Fault:
    return jpeg(lambda photo, _: photo.point(lambda value: round(255 - (255 - value) * factor)))


def blank(spread: float) -> Fault:
    return jpeg(lambda photo, rng: noise(photo, spread, rng))


def cut(share: float) -> Fault:
    return lambda photo, data, rng: (data[: int(len(data) * share)], ".jpg")


def moving(format_: str, suffix: str) -> Fault:
    return lambda photo, data, rng: (
        saved(photo, format_=format_, save_all=True, append_images=[ImageOps.mirror(photo)]),
        suffix,
    )


def turned(orientation: int) -> Fault:
    def save(photo: Image.Image, data: bytes, rng: random.Random) -> tuple[bytes, str]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return saved(photo, exif=exif), ".jpg"

    return save


def strip(length: float) -> Fault:
    return jpeg(lambda photo, _: photo.crop((0, 0, photo.width, max(8, round(photo.width / length)))))


def alpha(photo: Image.Image, data: bytes, rng: random.Random) -> tuple[bytes, str]:
    return saved(photo.convert("RGBA"), format_="PNG"), ".png"


def all_at_once(kept: float, factor: float, brightness: float, quality: int) -> Fault:
    def change(photo: Image.Image, rng: random.Random) -> Image.Image:
        changed = scaled(cropped(ImageOps.mirror(photo), kept, rng), factor)
        return ImageEnhance.Brightness(changed).enhance(brightness)

    return jpeg(change, quality)


# What is planted: the kind it is to be found as, the strengths of choosing, those of judging.
FAULTS: dict[str, tuple[str, Sequence[Fault], Sequence[Fault]]] = {
    "exact copy": (
        "exact-duplicates",
        [lambda photo, data, rng: (data, ".jpg")],
        [
            lambda photo, data, rng: (data, ".jpg"),
            lambda photo, data, rng: (saved(photo, format_="PNG"), ".png"),
            lambda photo, data, rng: (data + b"more bytes behind the end", ".jpg"),
            lambda photo, data, rng: (saved(photo, format_="WEBP", lossless=True), ".webp"),
        ],
    ),
    "resized": ("near-duplicates", [resize(0.75), resize(0.35)], [resize(f) for f in (0.85, 0.6, 0.45, 0.3, 1.6)]),
    "recompressed": (
        "near-duplicates",
        [jpeg(lambda photo, _: photo, q) for q in (50, 20)],
        [
            *(jpeg(lambda photo, _: photo, q) for q in (85, 65, 35, 15)),
            lambda photo, data, rng: (saved(photo, 60, "WEBP"), ".webp"),
        ],
    ),
    "mirrored": (
        "near-duplicates",
        [mirror(1, 85), mirror(0.5, 40)],
        [mirror(1, 92), mirror(0.7, 70), mirror(0.4, 30)],
    ),
    "cropped to 97, 94 and 90 %": ("near-duplicates", [crop(0.96), crop(0.92)], [crop(0.97), crop(0.94), crop(0.9)]),
    "cropped to 87 %": ("near-duplicates", [crop(0.88)], [crop(0.87)]),
    "brighter, darker": (
        "near-duplicates",
        [light(0.7), light(1.4), contrast(0.6), gamma(1.6)],
        [light(0.55), light(0.85), light(1.25), light(1.55), contrast(1.3), gamma(0.7)],
    ),
    "mirrored, cropped, resized, brighter": (
        "near-duplicates",
        [all_at_once(0.96, 0.6, 1.15, 60)],
        [all_at_once(0.95, 0.5, 1.25, 45)],
    ),
    "in another class too": ("label-conflict", [resize(0.75)], [resize(0.6)]),
    "in train and test": ("leak", [resize(0.75)], [resize(0.6)]),
    "cut short": ("truncated", [cut(0.5)], [cut(share) for share in (0.2, 0.6, 0.9, 0.98)]),
    "empty file": ("zero-byte", [cut(0)], [cut(0)]),
    "no photo": (
        "unreadable",
        [lambda photo, data, rng: (b"<html>not found</html>", ".jpg")],
        [
            lambda photo, data, rng: (rng.randbytes(5000), ".jpg"),
            lambda photo, data, rng: (b'{"error": 404}' * 9, ".png"),
        ],
    ),
    "wrong name": (
        "wrong-extension",
        [lambda photo, data, rng: (saved(photo, format_="PNG"), ".jpg")],
        [
            lambda photo, data, rng: (saved(photo, format_="WEBP"), ".jpg"),
            lambda photo, data, rng: (data, ".png"),
        ],
    ),
    "moving picture": ("animated", [moving("GIF", ".gif")], [moving("GIF", ".gif"), moving("WEBP", ".webp")]),
    "turned by EXIF": ("rotated", [turned(6)], [turned(3), turned(8), turned(5)]),
    "without colour": (
        "grey",
        [jpeg(lambda photo, _: photo.convert("L"))],
        [jpeg(lambda photo, _: photo.convert("L"), 60), jpeg(lambda photo, _: photo.convert("L").convert("RGB"), 40)],
    ),
    "with alpha": ("alpha", [alpha], [alpha]),
    "tiny or huge": ("odd-size", [resize(0.2)], [resize(0.15), resize(6)]),
    "a strip": ("odd-shape", [strip(4)], [strip(3.5), strip(6)]),
    "blurred": ("blurred", [blur(r) for r in (2, 3, 4)], [blur(r) for r in (1.75, 2.5, 3.5, 5)]),
    "dark": ("dark", [light(f) for f in (0.1, 0.15, 0.2)], [light(f) for f in (0.05, 0.12, 0.18)]),
    "washed out": ("bright", [washed(0.1), washed(0.2)], [washed(0.15), washed(0.05)]),
    "blank": (
        "nearly-empty",
        [blank(2), blank(5), contrast(0.05)],
        [blank(0.5), blank(3.5), contrast(0.03), contrast(0.07)],
    ),
}


def halves(found: photos.Photos) -> tuple[list[str], list[str]]:
    sides: tuple[list[str], list[str]] = ([], [])
    for path in found.paths:
        sides[hashlib.sha256(path.encode()).digest()[0] % 2].append(path)
    return sides


def look(root: Path) -> tuple[photos.Photos, list[Any], photos.Findings]:
    found = photos.scan(root)
    findings = photos.examine(found, with_quality=True)
    return found, diagnose(found, findings, findings.near_duplicates()), findings


def judge(root: Path, paths: Sequence[str], choose: bool) -> list[dict[str, Any]]:
    """Plant each fault in a folder of the clean photos, look, and take it out again."""
    _, listed, _ = look(root)
    blamed = {kind: {path for one in listed if one.kind == kind for path in one.photos} for kind, *_ in FAULTS.values()}
    twice = ("exact-duplicates", "near-duplicates", "label-conflict")
    real = {path for one in listed for path in one.photos if one.kind in twice} & set(REAL)
    rows = []
    for name, (kind, choosing, judging) in FAULTS.items():
        rng = random.Random(name)
        chosen = rng.sample([path for path in paths if path not in real], PLANTED)
        base = root
        if kind == "leak":
            base = root.with_name("with-test")
            shutil.copytree(root, base / "train", symlinks=True)
            shutil.copytree(root, base / "test", symlinks=True, ignore=shutil.ignore_patterns("*.*"))
        classes = sorted({path.split("/")[0] for path in paths})
        planted: dict[str, str] = {}
        for number, path in enumerate(chosen):
            data = (root / path).read_bytes()
            fault = (choosing if choose else judging)[number % len(choosing if choose else judging)]
            data, suffix = fault(Image.open(io.BytesIO(data)).convert("RGB"), data, rng)
            label = path.split("/")[0]
            if kind == "label-conflict":
                label = rng.choice([other for other in classes if other != label])
            place = f"{label}/planted-{number:03}{suffix}"
            planted[f"test/{place}" if kind == "leak" else place] = f"train/{path}" if kind == "leak" else path
            (base / ("test" if kind == "leak" else "") / place).write_bytes(data)
        _, listed, _ = look(base)
        of_kind = [set(one.photos) for one in listed if one.kind == kind]
        pair = kind.endswith("duplicates") or kind in ("leak", "label-conflict")
        hits = sum(any(bad in one and (not pair or good in one) for one in of_kind) for bad, good in planted.items())
        involved = set(planted) | set(planted.values())
        wrong = {path for one in of_kind for path in one if not (pair and one & involved)} - set(planted) - real
        rows.append(
            {"fault": name, "kind": kind, "planted": PLANTED, "found": hits, "clean": len(paths), "blamed": len(wrong)}
        )
        print(f"{name:38} {kind:17} {hits / PLANTED:7.1%} found, {len(wrong)} of {len(paths)} clean blamed", flush=True)
        if base != root:
            shutil.rmtree(base)
        for place in planted:
            (root / place).unlink(missing_ok=True)
    print("before planting:", {kind: len(paths) for kind, paths in blamed.items() if paths})
    return rows


def too_large() -> dict[str, Any]:
    """Twenty photos of 51 to 60 megapixels: two hundred would take minutes to make."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(20):
            (root / "ab"[number % 2]).mkdir(exist_ok=True)
            Image.new("L", (8500, 6000 + 55 * number), 20 + number).save(root / "ab"[number % 2] / f"{number}.png")
        _, listed, _ = look(root)
    found = sum(one.kind == "too-large" for one in listed)
    return {"fault": "51 to 60 megapixels", "kind": "too-large", "planted": 20, "found": found, "clean": 0, "blamed": 0}


def wrong_labels(root: Path, paths: Sequence[str], net: str, weights: str) -> dict[str, Any]:
    """Two hundred labels of the half changed at random; features of published weights, which saw none of them."""
    from handlens.evaluate import wrong_labels as room
    from handlens.nets import weights as published
    from handlens.train.features import Frozen

    found = photos.scan(root).without(REAL)
    file = published.find(net, weights)
    sha256 = photos.examine(found).sha256
    vectors = Frozen(published.load(file), file.preprocess).features(found, sha256)[0]
    rng = np.random.default_rng(0)
    labels = found.labels.copy()
    changed = rng.choice(len(labels), PLANTED, replace=False)
    labels[changed] = (labels[changed] + rng.integers(1, len(found.classes), PLANTED)) % len(found.classes)
    told = [one.photo for one in room.suspects(room.out_of_fold(vectors, labels), labels)]
    first, hits = (len(set(some) & set(changed.tolist())) for some in (told[:PLANTED], told))
    figures = {"planted": PLANTED, "found": hits, "clean": len(labels) - PLANTED, "blamed": len(told) - hits}
    more = {"in_first_200": first, "net": net, "weights": Path(weights).name}
    return {"fault": "wrong label", "kind": "suspected-label", **figures, **more}


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(work: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), cpu_s()
    work()
    return {"seconds": round(time.perf_counter() - wall, 2), "cpu_seconds": round(cpu_s() - cpu, 2)}


def whole_runs(source: Path) -> list[dict[str, Any]]:
    """Everything but the wrong labels, from a cold cache, on a quarter, a half and all of the photos."""
    rows = []
    found = photos.scan(source)
    for part in (4, 2, 1):
        some = found.select(range(0, len(found), part))
        shutil.rmtree(files.cache_folder(), ignore_errors=True)

        def work(some: photos.Photos = some) -> None:
            _FOUND.clear()  # as a new process has it
            findings = photos.examine(some, with_quality=True)
            diagnose(some, findings, findings.near_duplicates())

        rows.append({"photos": len(some), **timed(work)})
        print(rows[-1], flush=True)
    rows.append({"photos": len(some), "again": True, **timed(work)})
    print(rows[-1], flush=True)
    return rows


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """Thumbnails of nothing, with the spectrum of photos: uint8 (count, 32, 32)."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.rfftfreq(32))
    frequency[0, 0] = np.inf
    made = np.empty((count, 32, 32), np.uint8)
    for start in range(0, count, 4096):
        part = made[start : start + 4096]
        values = np.fft.irfft2(np.fft.rfft2(rng.normal(size=part.shape)) * frequency**-1.3)
        part[:] = np.clip(128 + 45 * values / values.std((1, 2), keepdims=True), 0, 255)
    return made


def matching() -> list[dict[str, Any]]:
    """The search for pairs alone, among generated thumbnails with a near-duplicate for one in a hundred of them."""
    rows = []
    for count in (12_500, 25_000, 50_000, 100_000):
        thumbs = drawn(count)
        rng = np.random.default_rng(1)
        copies = count // 100
        changed = thumbs[:copies, :, ::-1] * 0.8 + rng.normal(0, 4, (copies, 32, 32))  # mirrored, darker, noisy
        thumbs[-copies:] = np.clip(changed, 0, 255)
        found: list[list[int]] = []
        row = {"photos": count, **timed(lambda thumbs=thumbs, found=found: found.extend(near.alike(thumbs).groups))}
        right = {(i, count - copies + i) for i in range(copies)}
        pairs = {tuple(group) for group in found}
        row |= {"planted": copies, "found": len(right & pairs), "others": len(pairs - right)}
        row["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--net", default="mobilenet_v2")
    parser.add_argument("--weights", default="imagenet", help="whose features find wrong labels; none: leave that out")
    parser.add_argument("--choose", action="store_true", help="the half and the strengths that thresholds come from")
    given = parser.parse_args()
    source = given.photos.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HANDLENS_CACHE"] = str(Path(folder, "cache"))
        result: dict[str, Any] = {} if given.choose else {"matching": matching(), "whole_runs": whole_runs(source)}
        paths = halves(photos.scan(source))[not given.choose]
        root = Path(folder, "photos")
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to(source / path)
        result["faults"] = judge(root, paths, given.choose)
        if not given.choose:
            result["faults"].append(too_large())
        if given.weights != "none":
            result["faults"].append(wrong_labels(root, paths, given.net, given.weights))
        print(*result["faults"][-2:], sep="\n")
    if given.choose:
        return
    result["command"] = "python benchmarks/planted_faults.py PHOTOS --weights FILE --net mobilenet_v2"
    result["machine"] = {"processor": platform.machine(), "cores": os.cpu_count(), "load_1_min": os.getloadavg()[0]}
    result["versions"] = {"python": platform.python_version(), "numpy": np.__version__, "pillow": PIL.__version__}
    files.write_json(ROOT / "benchmarks" / "results" / "planted_faults.json", result)


if __name__ == "__main__":
    main()
