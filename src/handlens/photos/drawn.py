"""The embedded demo set: flowers of five classes, drawn by program.

Every petal is a small curved surface in space: it is posed, lit, projected and painted from back to front, so that
flowers seen from above, aslant and from the side come out of the same few lines. The classes share their colours,
backgrounds and light; what tells them apart is how a flower is built.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from handlens import cores, files
from handlens.errors import HandlensError
from handlens.photos.painting import Pose, Scene, background, curve, leaf_green, paint, petals, photograph, shadow

CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
_SUPERSAMPLE = 2  # pictures are painted this much larger and reduced, which smooths every edge
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))

_COLOURS = {  # petal at its tip, petal at its base
    "white": ((246, 244, 240), (218, 214, 196)),
    "cream": ((250, 236, 196), (236, 206, 130)),
    "yellow": ((252, 216, 44), (238, 168, 14)),
    "lemon": ((250, 236, 96), (226, 204, 40)),
    "orange": ((250, 150, 40), (226, 96, 20)),
    "pink": ((246, 164, 192), (226, 108, 150)),
    "rose": ((228, 84, 130), (182, 36, 88)),
    "red": ((212, 34, 44), (146, 12, 28)),
    "wine": ((140, 28, 60), (86, 12, 40)),
    "violet": ((174, 112, 204), (120, 62, 160)),
}
_COLOURS_OF = {  # how often each class wears each colour; they overlap, so that colour says little
    "daisy": {"white": 5, "pink": 3, "yellow": 4, "lemon": 1, "orange": 2, "red": 2, "rose": 2, "violet": 1},
    "dandelion": {"yellow": 5, "lemon": 3, "cream": 1, "orange": 2},
    "roses": {"red": 3, "pink": 3, "rose": 2, "white": 3, "cream": 1, "yellow": 4, "orange": 2, "wine": 1},
    "sunflowers": {"yellow": 8, "lemon": 2, "orange": 3, "red": 1, "wine": 1, "cream": 2},
    "tulips": {"red": 3, "yellow": 5, "pink": 3, "orange": 2, "white": 3, "rose": 2, "violet": 1, "wine": 1},
}


class Dress(NamedTuple):
    """The colours of a plant, each RGB in 0..255."""

    tip: np.ndarray  # of its petals
    base: np.ndarray
    green: np.ndarray  # of its leaves


def _dress(rng: np.random.Generator, name: str) -> Dress:
    """Colours of the class, each time a little different."""
    weights = _COLOURS_OF[name]
    chosen = rng.choice(list(weights), p=np.array(list(weights.values())) / sum(weights.values()))
    tip, base = np.clip(np.array(_COLOURS[chosen]) + rng.normal(0, 9, 3), 0, 255)
    return Dress(tip, base, leaf_green(rng))


def _around(scene: Scene, count: int, jitter: float = 0.25) -> np.ndarray:
    """`count` angles evenly round a circle, give or take `jitter` of their distance."""
    return (np.arange(count) + scene.rng.normal(0, jitter, count)) * (2 * math.pi / count)


def _disc(scene: Scene, pose: Pose, radius: float, height: float, count: int, rim: np.ndarray, eye: np.ndarray) -> None:
    """A domed disc of florets in a sunflower's spiral, coloured `eye` in the middle and `rim` outside."""
    share = np.sqrt((np.arange(count) + 0.5) / count)
    angle = np.arange(count) * _GOLDEN_ANGLE
    where = np.stack((share * np.cos(angle), share * np.sin(angle), np.zeros(count)), axis=1) * radius
    where[:, 2] = height * (1 - share**2)
    ring = curve((0, 0), (0, 0), (2 * math.pi, 0), 25)[:, 0]
    ground = np.stack((np.cos(ring) * radius, np.sin(ring) * radius, 0 * ring), axis=1)
    scene.brush.polygon(pose.project(ground)[:, :2].ravel().tolist(), tuple((0.6 * rim).astype(int).tolist()))
    normal = where * [height / radius, height / radius, 0] + [0, 0, radius]
    lit = 0.75 + 0.35 * (normal @ scene.light) / np.sqrt((normal**2).sum(1))
    colour = (eye + (rim - eye) * share[:, None]) * (lit * scene.rng.normal(1, 0.13, count))[:, None]
    scene.dots(pose.project(where), max(2.0, 1.9 * radius * pose.radius / math.sqrt(count)), colour)


def _daisy(scene: Scene, pose: Pose, dress: Dress) -> None:
    """A small yellow or brown disc and one or two rows of narrow, blunt petals."""
    rng = scene.rng
    tip, base, _ = dress
    count, disc, rise = int(rng.integers(12, 25)), rng.uniform(0.2, 0.3), rng.uniform(-12, 28)
    for row in range(int(rng.integers(1, 3))):
        length = (1 - disc * 0.8) * rng.normal(1 - 0.12 * row, 0.04, count)
        surface = petals(
            _around(scene, count, 0.12) + row * math.pi / count, length, rng.uniform(1.9, 2.7) / count, (1.35, 0.45),
            (rise + 12 * row, rise - 18), root=disc * 0.8, lift=0.03 * row, bend=1.5, droop=rng.normal(0, 7, count),
        )  # fmt: skip
        scene.mesh(surface, paint(scene, surface, tip, 0.5 * tip + 0.5 * base), pose)
    if rng.random() < 0.8:
        rim, eye = np.array([238, 176, 26]), np.array([206, 150, 20]) * rng.uniform(0.75, 1.1)
    else:
        rim, eye = np.array([112, 70, 30]), np.array([64, 38, 24])
    _disc(scene, pose, disc, disc * rng.uniform(0.3, 0.8), 70, rim, eye)


def _dandelion(scene: Scene, pose: Pose, dress: Dress) -> None:
    """A dense head of thin strap florets without a disc; or the ball of seeds."""
    rng = scene.rng
    if rng.random() < 0.4:
        _seed_ball(scene, pose)
        return
    tip, base, _ = dress
    if pose.tilt > 0.7:  # the bracts under the head
        surface = petals(_around(scene, 14), 0.5, 0.09, (0.8, 0.8), (-60, 60, 40), root=0.12, lift=-0.25)
        scene.mesh(surface, paint(scene, surface, dress.green, 0.8 * dress.green), pose)
    young = rng.uniform(0, 0.35)
    for row in np.linspace(0, 1, 6):
        count = int(30 - 14 * row)
        length = (1 - 0.6 * row) * rng.normal(1, 0.07, count)
        surface = petals(
            _around(scene, count, 0.4), length, 0.055, (0.3, 0.3), (5 + 60 * row, 62 * (row + young) - 8),
            root=0.03, lift=0.12 * row, droop=rng.normal(0, 6, count), grid=(3, 1),
        )  # fmt: skip
        shade = 1 - 0.22 * row
        scene.mesh(surface, paint(scene, surface, tip * shade, base * shade * 0.9), pose)


def _seed_ball(scene: Scene, pose: Pose) -> None:
    """A dandelion's clock: parachutes on a sphere, some of them blown away."""
    rng = scene.rng
    count = 150
    z = 1 - 2 * (np.arange(count) + 0.5) / count
    angle = np.arange(count) * _GOLDEN_ANGLE
    ball = np.stack((np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z), axis=1)
    ball += rng.normal(0, 0.05, ball.shape)
    if rng.random() < 0.35:  # the wind has taken a side of it
        wind = rng.normal(0, 1, 3)
        ball = ball[ball @ wind / np.linalg.norm(wind) < rng.uniform(0, 0.8)]
    points = pose.project(ball * 0.9)
    ball, points = (values[np.argsort(points[:, 2])] for values in (ball, points))
    grey = rng.uniform(205, 250) + rng.normal(0, 6, 3)
    centre = np.array([pose.x, pose.y])
    box = [*(centre - pose.radius * 0.95), *(centre + pose.radius * 0.95)]
    scene.brush.ellipse(
        box, (*(0.6 * grey).astype(int).tolist(), int(rng.uniform(40, 90)))
    )  # seen before bright sky too
    star = rng.uniform(0, math.pi, len(points))[:, None] + np.arange(5) * (2 * math.pi / 5)
    rays = np.stack((np.cos(star), np.sin(star)), axis=-1) * pose.radius * 0.17
    ends = points[:, None, :2] + rays + (points[:, None, :2] - centre) * 0.07
    depth = np.clip(0.5 + 0.5 * (points[:, 2] / pose.radius), 0, 1)
    core = pose.radius * 0.13
    seed = tuple(int(value) for value in np.array([96, 74, 52]) * rng.uniform(0.7, 1.3))
    for point, tuft, near in zip(points[:, :2].tolist(), ends.tolist(), depth.tolist(), strict=True):
        bright = tuple((grey * (0.7 + 0.3 * near)).astype(int).tolist())
        foot = centre + (np.array(point) - centre) * 0.15
        scene.brush.line([*foot, *point], (*bright, int(40 + 70 * near)))
        for end in tuft:
            scene.brush.line([*point, *end], (*bright, int(70 + 130 * near)))
    scene.brush.ellipse([*(centre - core), *(centre + core)], seed)


def _rose(scene: Scene, pose: Pose, dress: Dress) -> None:
    """Broad rounded petals wrapped round each other, tight in the middle and rolling outward outside."""
    rng = scene.rng
    tip, base, _ = dress
    opened = rng.uniform(0.35, 1.0)
    if pose.tilt > 0.8:
        surface = petals(_around(scene, 5), 0.6, 0.12, (0.6, 0.9), (-10, -30, -60), root=0.1, lift=-0.1)
        scene.mesh(surface, paint(scene, surface, dress.green, 0.8 * dress.green), pose)
    scene.dots(pose.project(np.zeros((1, 3))), 0.7 * pose.radius, 0.45 * base[None])  # no gap shows what is behind
    rows = 6
    for row in range(rows):  # from the outside in; a row's petals are sorted among themselves
        inner = row / (rows - 1)
        root = 0.06 + 0.30 * (1 - inner) * opened
        count = 5 if row < 4 else 3
        outward = opened * (1 - inner)
        surface = petals(
            _around(scene, count, 0.15) + row * 0.9, (0.72 - 0.22 * inner) * rng.normal(1, 0.05, count),
            (0.52 - 0.3 * inner) * (0.75 + 0.3 * opened), (1.3, 0.35),
            (75 - 40 * outward, 88 - 50 * outward, 80 - 95 * outward), root=root, lift=-0.1 + 0.08 * inner,
            bend=1 / (root + 0.25), droop=rng.normal(0, 6, count), grid=(6, 4),
        )  # fmt: skip
        shade = 1 - 0.15 * inner
        scene.mesh(surface, paint(scene, surface, tip * shade * 1.05, base * shade * 0.55, edge=0.88), pose)


def _sunflower(scene: Scene, pose: Pose, dress: Dress) -> None:
    """A broad disc of seeds and two rows of pointed petals; from the side, green bracts behind them."""
    rng = scene.rng
    tip, base, _ = dress
    disc, count = rng.uniform(0.42, 0.58), int(rng.integers(16, 26))
    if pose.tilt > 0.6:
        surface = petals(_around(scene, 16), 0.5, 0.11, (0.6, 1.0), (-10, 20), root=disc * 0.7, lift=-0.12)
        scene.mesh(surface, paint(scene, surface, dress.green, 0.8 * dress.green), pose)
    for row in range(2):
        surface = petals(
            _around(scene, count) + row * math.pi / count, (1 - disc * 0.85) * rng.normal(1, 0.09, count),
            rng.uniform(2.0, 2.6) / count, (0.8, 0.85), (rng.uniform(-5, 35), rng.uniform(-20, 20)),
            root=disc * 0.85, lift=0.03 * row, bend=2.0, droop=rng.normal(0, 12, count),
        )  # fmt: skip
        scene.mesh(surface, paint(scene, surface, tip * (0.88 + 0.12 * row), base, edge=0.85), pose)
    rim, eye = np.array([104, 64, 26]) * rng.uniform(0.7, 1.3), np.array([62, 42, 24]) * rng.uniform(0.6, 1.3)
    if rng.random() < 0.35:
        rim = np.array([206, 150, 30]) * rng.uniform(0.7, 1.1)  # its outer florets are in flower
    if rng.random() < 0.3:
        eye = np.array([128, 136, 52]) * rng.uniform(0.7, 1.1)  # and its inner ones still green
    _disc(scene, pose, disc, disc * rng.uniform(0.1, 0.35), 170, rim, eye)


def _tulip(scene: Scene, pose: Pose, dress: Dress) -> None:
    """A cup of two times three broad petals; from above, a dark heart with stamens."""
    rng = scene.rng
    tip, base, _ = dress
    if rng.random() < 0.25:
        tip, base = base, tip
    opened = rng.uniform(-8, 22) + (25 if pose.tilt < 0.8 else 0)
    surface = np.concatenate(
        [
            petals(
                _around(scene, 3, 0.04) + row * math.pi / 3, 1.75 * rng.normal(1, 0.03, 3),
                rng.uniform(0.55, 0.66), (0.95, 0.55), (5, 62 - opened, 92 - opened, 96 - opened * 1.3),
                root=0.04 - 0.04 * row, lift=-0.75, bend=1.5 - 0.03 * opened, droop=rng.normal(0, 4, 3), grid=(8, 4),
            )
            for row in range(2)
        ]
    )  # fmt: skip
    scene.mesh(surface, paint(scene, surface, tip, base, edge=0.93), pose)
    if pose.tilt < 0.8:
        heart = np.array([[0.0, 0.0, -0.5]])
        scene.dots(pose.project(heart), pose.radius * 0.3, np.array([[60.0, 40, 40]]))
        angles = _around(scene, 6)
        stamens = np.stack((0.17 * np.cos(angles), 0.17 * np.sin(angles), 0 * angles - 0.3), axis=1)
        scene.dots(pose.project(stamens), pose.radius * 0.11, np.full((6, 3), 50.0))


_FLOWERS: dict[str, Callable[[Scene, Pose, Dress], None]] = {
    "daisy": _daisy,
    "dandelion": _dandelion,
    "roses": _rose,
    "sunflowers": _sunflower,
    "tulips": _tulip,
}
_TILTS = {  # radians: how much a class is seen from the side
    "daisy": (0.0, 1.0),
    "dandelion": (0.0, 1.1),
    "roses": (0.1, 1.15),
    "sunflowers": (0.0, 1.1),
    "tulips": (1.05, 1.6),
}
_LEAVES = {  # length and half width in flower radii, how near the base it is widest, how toothed, if on the stem
    "daisy": (0.9, 0.14, 0.8, 0.25, True),
    "dandelion": (2.6, 0.32, 1.5, 0.8, False),
    "roses": (1.0, 0.36, 0.8, 0.12, True),
    "sunflowers": (1.3, 0.55, 0.6, 0.05, True),
    "tulips": (3.2, 0.34, 0.7, 0.0, False),
}


def _stem_and_leaves(scene: Scene, pose: Pose, name: str, green: np.ndarray) -> None:
    """The stem from behind the flower out of the picture, and the leaves of its class."""
    rng = scene.rng
    length, half_width, widest, toothed, on_stem = _LEAVES[name]
    back = pose.project(np.array([0.0, 0.0, -0.7 if name == "tulips" else -0.05]))[:2]
    away = np.array([-math.sin(pose.lean), math.cos(pose.lean)])
    down = np.array([rng.normal(0, 0.25), 1.0]) * max(scene.px - back[1], 0.3 * scene.px) * 1.15
    stem = curve(back, back + away * np.linalg.norm(down) * 0.5, back + down, 12)
    thick = pose.radius * rng.uniform(0.05, 0.08)

    def leaf(start: np.ndarray, direction: float) -> None:
        reach = length * pose.radius * rng.uniform(0.7, 1.2)
        end = start + reach * np.array([math.cos(direction), math.sin(direction)])
        middle = (start + end) / 2 + rng.normal(0, 0.18 * reach, 2)
        line = curve(start, middle, end, 15)
        s = np.linspace(0, 1, len(line))
        teeth = 1 - toothed * (np.arange(len(line)) % 2)
        broad = half_width * pose.radius * rng.uniform(0.5, 1.15) * np.sin(math.pi * s**widest) * teeth
        scene.ribbon(line, broad, green * rng.uniform(0.75, 1.15))

    if on_stem:
        scene.ribbon(stem, np.full(len(stem), thick), green)
        for place in rng.integers(3, 11, int(rng.integers(0, 5))):
            leaf(stem[place], rng.choice([-0.3, math.pi + 0.3]) + rng.normal(0, 0.5))
    else:
        for _ in range(int(rng.integers(0, 4))):
            leaf(stem[-3] + [rng.normal(0, 0.3) * pose.radius, 0], rng.normal(-math.pi / 2, 0.5))
        scene.ribbon(stem, np.full(len(stem), thick), green)


def picture(name: str, index: int, image_px: int = 128, seed: int = 0) -> tuple[Image.Image, int]:
    """Picture number `index` of class `name`, `image_px` square, and the JPEG quality it is to be kept at.

    The same four arguments give the same picture, whatever else is drawn.
    """
    rng = np.random.default_rng([seed, CLASSES.index(name), index])
    scene = Scene(rng, image_px * _SUPERSAMPLE)
    far = rng.choice(list(_COLOURS), 2)
    background(scene, [_COLOURS[colour][0] for colour in far])
    dress = _dress(rng, name)
    for pose in _poses(rng, name, scene.px):
        if rng.random() < 0.15:
            dress = _dress(rng, name)._replace(green=dress.green)  # a flower of another colour among them
        if rng.random() < 0.6:
            shadow(scene, pose)
        if rng.random() < 0.85:
            _stem_and_leaves(scene, pose, name, dress.green)
        _FLOWERS[name](scene, pose, dress)
    return photograph(rng, scene.image.reduce(_SUPERSAMPLE)), int(rng.integers(55, 96))


def _poses(rng: np.random.Generator, name: str, px: int) -> list[Pose]:
    """One flower, or several that are smaller, the nearest last."""
    count = int(rng.choice([1, 2, 3, 5], p=[0.78, 0.12, 0.06, 0.04]))
    low, high = _TILTS[name]
    if name == "tulips" and rng.random() < 0.12:
        low, high = 0.15, 0.7  # looked into from above
    upright = rng.normal(0, 0.25)
    poses = []
    for _ in range(count):
        tilt = rng.uniform(low, high)
        x, y = rng.normal(0.5, 0.1, 2) if count == 1 else rng.uniform(0.15, 0.85, 2)
        radius = rng.uniform(0.28, 0.56) / count**0.35 * (0.8 if name == "tulips" else 1)  # a cup is taller than wide
        lean = upright + rng.normal(0, 0.25 + 0.3 * math.cos(tilt))
        poses.append(Pose(x * px, y * px, radius * px, tilt, lean, rng.uniform(0, 2 * math.pi)))
    return sorted(poses, key=lambda pose: pose.radius)


def draw(
    folder: str | os.PathLike[str],
    photos_per_class: int = 400,
    image_px: int = 128,
    seed: int = 0,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw the demo set into `folder`: one subfolder a class of `CLASSES`, JPEG files of `image_px` squared.

    Picture number i of a class depends on `seed`, `image_px` and i alone: a larger set begins with the smaller one.
    processes: how many draw at once, by default one a processor; 1 draws in this process.
    progress: called with (done, total). Returns the folder. `folder` appears when all is drawn, or not at all.
    Raises HandlensError when `folder` exists and is not empty, or when a number is out of range.
    """
    for given, value, low, high in (
        ("photos_per_class", photos_per_class, 1, 100_000),
        ("image_px", image_px, 32, 1024),
        ("seed", seed, 0, 2**63 - 1),
        ("processes", processes or 1, 1, 1024),
    ):
        if not low <= value <= high:
            raise HandlensError(f"{given} is {value}, expected {low} to {high}")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HandlensError(f"{folder} exists and is not an empty folder", "name a new folder for the pictures")
    with files.atomic_folder(folder) as unfinished:
        for name in CLASSES:
            (unfinished / name).mkdir()
        _draw_all(unfinished, photos_per_class, image_px, seed, processes or cores.available(), progress)
        if folder.exists():
            folder.rmdir()
    return folder


def _draw_all(
    folder: Path,
    photos_per_class: int,
    image_px: int,
    seed: int,
    processes: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Draw every picture, in plain processes: those of multiprocessing would run the caller's script again."""
    total = photos_per_class * len(CLASSES)
    done = 0

    def tick(drawn: int = 1) -> None:
        nonlocal done
        done += drawn
        if progress and drawn:
            progress(done, total)

    if processes == 1 or total < 100 or not sys.executable:  # starting takes longer than drawing a few
        _draw_share(folder, photos_per_class, image_px, seed, 0, 1, tick)
        return
    ticks_in, ticks_out = os.pipe()  # one byte a picture
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for share in range(processes):
            arguments = [str(value) for value in (folder, photos_per_class, image_px, seed, share, processes)]
            command = [sys.executable, "-P", "-c", _WORKER, *arguments]
            workers.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=ticks_out, stderr=subprocess.DEVNULL)
            )
        os.close(ticks_out)
        ticks_out = -1
        while drawn := len(os.read(ticks_in, 4096)):
            tick(drawn)
        for share, worker in enumerate(workers):
            if worker.wait() != 0:  # draw its share here, where an error is seen
                _draw_share(folder, photos_per_class, image_px, seed, share, processes, lambda: None)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        os.close(ticks_in)
        if ticks_out >= 0:
            os.close(ticks_out)


_WORKER = """
import os, sys
from pathlib import Path
from handlens.photos.drawn import _draw_share
_draw_share(Path(sys.argv[1]), *map(int, sys.argv[2:]), lambda: os.write(1, b"."))
"""


def _draw_share(
    folder: Path, photos_per_class: int, image_px: int, seed: int, share: int, shares: int, tick: Callable[[], object]
) -> None:
    """Draw and write every `shares`-th picture, beginning with number `share`, calling `tick` after each."""
    jobs = [(name, index) for index in range(photos_per_class) for name in CLASSES]
    for name, index in jobs[share::shares]:
        image, quality = picture(name, index, image_px, seed)
        image.save(folder / name / f"{name}_{index:05d}.jpg", quality=quality)
        tick()
