"""Painting by program: petals as curved surfaces in space, stems and leaves, what is behind them, light and lens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where a flower is and how it is turned. Its own axis points out of its face; its radius is 1."""

    x: float  # centre and radius in pixels of the canvas
    y: float
    radius: float
    tilt: float  # radians between the flower's axis and the line to the camera: 0 faces us, pi/2 is seen from the side
    lean: float  # radians by which the axis leans from upright in the picture
    spin: float  # radians about its own axis

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) of the flower -> (..., 3): x and y in pixels, and nearness to the camera in pixels."""
        u, v = _turn(points[..., 0], points[..., 1], self.spin)
        w = points[..., 2]
        up = w * math.sin(self.tilt) - v * math.cos(self.tilt)
        near = w * math.cos(self.tilt) + v * math.sin(self.tilt)
        x, y = _turn(u, -up, self.lean)
        return np.stack((self.x + self.radius * x, self.y + self.radius * y, self.radius * near), axis=-1)


class Scene:
    """A picture being painted: its canvas of `px` by `px` pixels, its own random numbers and its light."""

    def __init__(self, rng: np.random.Generator, px: int) -> None:
        self.rng = rng
        self.px = px
        self.show(Image.new("RGB", (px, px)))
        light = np.array([rng.normal(0, 0.6), rng.normal(-0.8, 0.4), rng.uniform(0.6, 1.4)])
        self.light = light / np.linalg.norm(light)
        self.ambient = rng.uniform(0.45, 0.75)

    def show(self, image: Image.Image) -> None:
        """Go on painting over `image`."""
        self.image = image
        self.brush = ImageDraw.Draw(image, "RGBA")

    def mesh(self, surface: np.ndarray, colour: np.ndarray, pose: Pose) -> None:
        """Paint petals: `surface` (petals, along, across, 3) in space, `colour` (petals, along - 1, across - 1, 3)."""
        points = pose.project(surface)
        a, b, c, d = points[:, :-1, :-1], points[:, 1:, :-1], points[:, 1:, 1:], points[:, :-1, 1:]
        p, q = c - a, d - b
        normal = p[..., (1, 2, 0)] * q[..., (2, 0, 1)] - p[..., (2, 0, 1)] * q[..., (1, 2, 0)]
        normal /= np.sqrt((normal**2).sum(-1, keepdims=True)) + 1e-6
        lit = np.abs(normal @ self.light) * 0.7 + 0.3 * np.abs(normal[..., 2])
        fill = np.clip(colour * (self.ambient + (1 - self.ambient) * lit[..., None]), 0, 255).astype(int)
        near = (a + b + c + d)[..., 2]
        petal_near = np.broadcast_to(near.mean((1, 2))[:, None, None], near.shape)
        order = np.lexsort((near.ravel(), petal_near.ravel()))
        quads = np.concatenate((a[..., :2], b[..., :2], c[..., :2], d[..., :2]), axis=-1).reshape(-1, 8)[order]
        for quad, rgb in zip(quads.tolist(), fill.reshape(-1, 3)[order].tolist(), strict=True):
            self.brush.polygon(quad, tuple(rgb))

    def dots(self, points: np.ndarray, size_px: float, colour: np.ndarray) -> None:
        """Paint points (n, 3) of the canvas, farthest first, as dots of `colour` (n, 3)."""
        order = np.argsort(points[:, 2])
        boxes = np.concatenate((points[:, :2] - size_px / 2, points[:, :2] + size_px / 2), axis=1)[order]
        for box, rgb in zip(boxes.tolist(), np.clip(colour[order], 0, 255).astype(int).tolist(), strict=True):
            self.brush.ellipse(box, tuple(rgb))

    def ribbon(self, line: np.ndarray, half_width: np.ndarray, colour: ArrayLike) -> None:
        """Paint a stem or a leaf: a band along `line` (n, 2) of pixels, one half in light and one in shadow."""
        along = np.gradient(line, axis=0)
        side = np.stack((-along[:, 1], along[:, 0]), axis=1)
        side *= half_width[:, None] / (np.sqrt((side**2).sum(1, keepdims=True)) + 1e-6)
        bright = 1.0 if side[len(side) // 2] @ self.light[:2] > 0 else 0.72
        for edge, shade in ((line + side, bright), (line - side, 1.72 - bright)):
            outline = np.concatenate((edge, line[::-1])).ravel().tolist()
            self.brush.polygon(outline, tuple(int(min(255, value * shade)) for value in np.asarray(colour)))


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)


def curve(start: ArrayLike, middle: ArrayLike, end: ArrayLike, points: int = 9) -> np.ndarray:
    """A curve (points, 2) from `start` to `end`, drawn towards `middle`."""
    t = np.linspace(0, 1, points)[:, None]
    return (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(middle) + t**2 * np.array(end)


def petals(
    angles: np.ndarray,
    length: np.ndarray | float,
    half_width: float,
    profile: tuple[float, float],
    rise: Sequence[float],
    root: float = 0.0,
    lift: float = 0.0,
    bend: float = 0.0,
    droop: np.ndarray | float = 0.0,
    grid: tuple[int, int] = (5, 2),
) -> np.ndarray:
    """Petals round the axis as surfaces (petals, along + 1, across + 1, 3), in units of the flower's radius.

    profile: (p, q), the width at s in 0..1 along the petal is sin(pi s^p)^q: small p is widest near the base, small q
             is blunt. rise: the petal's slope in degrees from base to tip, 0 flat, 90 upright. root, lift: distance of
             the base from the axis, and its height. bend: curvature across the petal. droop: degrees taken off `rise`.
    """
    along, across = grid
    s = np.sin(np.linspace(0, math.pi / 2, along + 1))  # denser towards the tip, which is rounder
    t = np.linspace(-1, 1, across + 1)
    length = np.broadcast_to(length, angles.shape)[:, None]
    slope = np.radians(np.interp(s, np.linspace(0, 1, len(rise)), rise)[None] - np.reshape(droop, (-1, 1)))
    slope = np.broadcast_to(slope, (len(angles), along + 1))
    step = np.diff(s, prepend=0.0) * length
    out = (root + np.cumsum(np.cos(slope) * step, axis=1))[..., None]
    high = (lift + np.cumsum(np.sin(slope) * step, axis=1))[..., None]
    width = half_width * np.sin(math.pi * np.clip(s, 0.02, 0.995) ** profile[0]) ** profile[1]
    side = np.broadcast_to(width[:, None] * t, (len(angles), along + 1, across + 1))
    if bend:
        side, up = np.sin(bend * side) / bend, (1 - np.cos(bend * side)) / bend
        out, high = out - up * np.sin(slope)[..., None], high + up * np.cos(slope)[..., None]
    else:
        out, high = np.broadcast_to(out, side.shape), np.broadcast_to(high, side.shape)
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    return np.stack((out * cos - side * sin, out * sin + side * cos, high), axis=-1)


def paint(scene: Scene, surface: np.ndarray, tip: ArrayLike, base: ArrayLike, edge: float = 0.9) -> np.ndarray:
    """Colours for `surface`: `base` to `tip` along the petal, one margin times `edge`, each petal a bit its own."""
    count, along, across = surface.shape[0], surface.shape[1] - 1, surface.shape[2] - 1
    s = ((np.arange(along) + 0.5) / along)[None, :, None, None]
    colour = np.array(base) * (1 - s) + np.array(tip) * s
    margin = np.ones((across, 1))
    margin[0] = edge
    own = scene.rng.normal(1, 0.055, (count, 1, 1, 1)) * scene.rng.normal(1, 0.02, (count, along, across, 1))
    return colour * own * margin


def noise(rng: np.random.Generator, px: int, cells: int) -> np.ndarray:
    """Smooth noise of shape (px, px, 1) in 0..1, about `cells` bumps across."""
    small = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.clip(np.asarray(small.resize((px, px), Image.Resampling.BICUBIC)), 0, 1)[..., None]


def leaf_green(rng: np.random.Generator) -> np.ndarray:
    """The green of a leaf: from yellowish to bluish, from dark to bright."""
    return np.array([rng.uniform(50, 120), rng.uniform(100, 165), rng.uniform(30, 80)]) * rng.uniform(0.6, 1.1)


def background(scene: Scene, far_colours: Sequence[Sequence[float]]) -> None:
    """What is behind the flowers: meadow, sky, soil, bokeh, a studio's gradient or a cluttered garden; often blurred.

    `far_colours` are those of the flowers that may be seen far behind, out of focus.
    """
    rng, px = scene.rng, scene.px
    kind = rng.choice(["meadow", "sky", "soil", "bokeh", "studio", "garden"], p=[0.3, 0.15, 0.12, 0.15, 0.13, 0.15])
    low, high = leaf_green(rng) * 0.55, leaf_green(rng) * 1.15
    if kind == "sky":
        low, high = np.array([[90, 140, 205], [235, 238, 242]]) * rng.uniform(0.75, 1.05)
    elif kind == "soil":
        low, high = np.array([[62, 46, 34], [150, 122, 92]]) * rng.uniform(0.7, 1.15)
    elif kind == "studio":
        low, high = np.sort(rng.uniform(10, 245, (2, 1)), axis=0) + rng.normal(0, 22, (2, 3))
    half = px // 2
    mix = 0.6 * noise(rng, half, int(rng.integers(2, 6))) + 0.4 * noise(rng, half, int(rng.integers(8, 40)))
    if kind in ("sky", "studio"):  # a gradient, with clouds
        angle = rng.normal(math.pi / 2, 0.4 if kind == "sky" else 2)
        y, x = np.mgrid[-1 : 1 : half * 1j, -1 : 1 : half * 1j]
        ramp = np.clip(0.5 + 0.4 * (x * math.cos(angle) + y * math.sin(angle)), 0, 1)[..., None]
        mix = ramp + (mix - 0.5) * (rng.uniform(0, 1.2) if kind == "sky" else 0.15)
    ground = low + (high - low) * np.clip(mix, 0, 1)
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    scene.show(image.resize((px, px), Image.Resampling.BILINEAR))

    if kind in ("meadow", "garden") or (kind in ("sky", "soil") and rng.random() < 0.4):
        for x, y in rng.uniform((0, 0.3), (1, 1.3), (int(rng.integers(15, 70)), 2)) * px:  # blades of grass
            tall = px * rng.uniform(0.1, 0.45)
            line = curve((x, y), (x, y - tall * 0.6), (x + rng.normal(0, 0.4) * tall, y - tall), 5)
            wide = np.linspace(1, 0.1, 5) * px * rng.uniform(0.004, 0.014)
            scene.ribbon(line, wide, leaf_green(rng))
    if kind in ("bokeh", "garden"):  # lights and far flowers out of focus, in any flower's colours
        for _ in range(int(rng.integers(5, 22))):
            x, y = rng.uniform(0, px, 2)
            size = px * rng.uniform(0.02, 0.11)
            colour = np.array(far_colours[int(rng.integers(len(far_colours)))]) * rng.uniform(0.5, 1)
            scene.brush.ellipse(
                [x - size, y - size, x + size, y + size], (*colour.astype(int).tolist(), int(rng.integers(40, 200)))
            )
    if kind == "soil":  # pebbles and crumbs
        for _ in range(int(rng.integers(20, 90))):
            x, y = rng.uniform(0, px, 2)
            size = px * rng.uniform(0.004, 0.03)
            shade = (low + (high - low) * rng.uniform(-0.3, 1.2)).astype(int).tolist()
            scene.brush.ellipse([x - size, y - size * 0.7, x + size, y + size * 0.7], tuple(shade))
    if kind == "garden" and rng.random() < 0.5:  # a fence or a wall
        wood = rng.uniform(60, 200) * np.array([1, 0.9, 0.78])
        width = px * rng.uniform(0.06, 0.16)
        for x in np.arange(rng.uniform(-width, 0), px, width * 1.25).tolist():
            shade = (wood * rng.uniform(0.85, 1.1)).astype(int).tolist()
            scene.brush.rectangle([x, 0, x + width, px * 0.75], tuple(shade))
    if rng.random() < 0.65:
        blur = int(rng.choice([4, 8, 12]))
        scene.show(scene.image.reduce(blur).resize((px, px), Image.Resampling.BICUBIC))


def shadow(scene: Scene, pose: Pose) -> None:
    """The soft shadow that a flower throws on what is behind it."""
    px, small = scene.px, scene.px // 8
    mask = Image.new("L", (small, small))
    x, y = (np.array([pose.x, pose.y]) - scene.light[:2] * pose.radius * 0.35) / 8
    size = pose.radius / 8
    ImageDraw.Draw(mask).ellipse([x - size, y - size, x + size, y + size], int(scene.rng.uniform(40, 130)))
    scene.image.paste(
        (8, 12, 10), (0, 0, px, px), mask.filter(ImageFilter.BoxBlur(2)).resize((px, px), Image.Resampling.BILINEAR)
    )


def photograph(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """What the light, the lens and the sensor do to a picture."""
    px = image.width
    if rng.random() < 0.35:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9) * px / 128))
    pixels = (np.asarray(image, dtype=np.float32) / 255) ** rng.uniform(0.8, 1.25)
    warmth, tint = rng.normal(0, 0.09), rng.normal(0, 0.03)
    gain = np.array([1 + warmth, 1 + tint, 1 - warmth]) * np.clip(rng.normal(1.18, 0.18), 0.7, 1.6)
    y, x = np.mgrid[-1 : 1 : px * 1j, -1 : 1 : px * 1j]
    angle = rng.uniform(0, 2 * math.pi)
    falloff = 1 + rng.uniform(0, 0.25) * (x * math.cos(angle) + y * math.sin(angle))
    falloff -= rng.uniform(0, 0.25) * (x**2 + y**2)  # vignette
    if rng.random() < 0.25:  # dappled shade
        shade = np.clip(0.5 + rng.uniform(2, 6) * (noise(rng, px, int(rng.integers(3, 9)))[..., 0] - 0.5), 0, 1)
        falloff *= 1 - rng.uniform(0.15, 0.5) * shade
    grey = pixels.mean(axis=-1, keepdims=True)
    pixels = grey + (pixels - grey) * rng.uniform(0.75, 1.2)
    pixels = pixels * (gain * falloff[..., None]).astype(np.float32)
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(0.004, 0.035))
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
