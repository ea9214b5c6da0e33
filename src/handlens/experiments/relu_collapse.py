"""ReLU on a low-dimensional manifold: Sandler et al. 2018, arXiv 1801.04381, section 3.2 and Figure 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from handlens.experiments.result import Result, panels

DIMENSIONS = (2, 3, 5, 15, 30)
RADIUS = 4.0  # large enough for ReLU6 to cut at 6
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ReLU": lambda x: np.maximum(x, 0),
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "linear": lambda x: x,
}


def experiment(seed: int = 0, draws: int = 200, points: int = 500) -> Result:
    """A spiral of `points`, embedded by `draws` random matrices into each number of dimensions, and brought back."""
    points_2d = spiral(points)
    size = np.linalg.norm(points_2d)
    rows: list[dict[str, Any]] = []
    pictures: dict[tuple[str, int], np.ndarray] = {}
    for n in DIMENSIONS:
        rng = np.random.default_rng([seed, n])
        matrices = rng.normal(size=(draws, n, 2))
        lost = np.mean([((points_2d @ matrix.T > 0).sum(1) < 2).mean() for matrix in matrices])
        for name, activation in ACTIVATIONS.items():
            errors, fitted = [], []
            for draw, matrix in enumerate(matrices):
                back = reconstruct(points_2d, matrix, activation)
                errors.append(np.linalg.norm(back - points_2d) / size)
                # ReLU halves what it lets through on average; by the best single factor only the shape counts.
                factor = (back * points_2d).sum() / max(1e-12, (back * back).sum())
                fitted.append(np.linalg.norm(factor * back - points_2d) / size)
                if draw == 0:
                    pictures[name, n] = back
            rows.append(
                {
                    "n": n,
                    "activation": name,
                    "error_mean": float(np.mean(errors)),
                    "error_std": float(np.std(errors)),
                    "scaled_error_mean": float(np.mean(fitted)),
                    "scaled_error_std": float(np.std(fitted)),
                    "lost_share": float(lost) if name != "linear" else 0.0,
                    "lost_share_expected": (n + 1) / 2**n if name != "linear" else 0.0,
                }
            )
    of = {(row["activation"], row["n"]): row for row in rows}
    first, last = of["ReLU", DIMENSIONS[0]], of["ReLU", DIMENSIONS[-1]]
    six = of["ReLU6", DIMENSIONS[-1]]
    return Result(
        finding=f"Through ReLU and back, the spiral's shape is off by {first['scaled_error_mean']:.0%} in "
        f"{DIMENSIONS[0]} dimensions and by {last['scaled_error_mean']:.0%} in {DIMENSIONS[-1]}; points that no "
        f"decoder could bring back (fewer than two coordinates left above 0) are {first['lost_share']:.0%} and "
        f"{last['lost_share']:.2%}. The bare pseudo-inverse of the paper gives an error of {last['error_mean']:.0%} "
        f"even in {DIMENSIONS[-1]}, for ReLU passes half of everything: the spiral comes back whole and half as large. "
        f"ReLU6 cuts what is above 6 as well ({six['scaled_error_mean']:.0%} in {DIMENSIONS[-1]}); without an "
        f"activation nothing is lost.",
        tables={"Error of reconstruction, as a share of the spiral's size": rows},
        numbers={},
        data={"seed": seed, "draws": draws, "points": points, "radius": RADIUS, "matrices": "normal, deviation 1"},
        figure=_figure(points_2d, pictures, rows),
    )


def spiral(points: int) -> np.ndarray:
    """An Archimedean spiral of two and a half turns round the origin, (points, 2), out to `RADIUS`."""
    share = np.linspace(0.02, 1, points)
    angle = 5 * np.pi * share
    return RADIUS * share[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def reconstruct(points: np.ndarray, matrix: np.ndarray, activation: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(P, 2) through the matrix (n, 2), the activation, and the matrix's pseudo-inverse: (P, 2)."""
    back: np.ndarray = activation(points @ matrix.T) @ np.linalg.pinv(matrix).T
    return back


def _figure(points: np.ndarray, pictures: dict[tuple[str, int], np.ndarray], rows: list[dict[str, Any]]) -> Any:
    figure, axes = panels(len(DIMENSIONS) + 2, 2, width=2.2, height=2.3)
    colours = np.linspace(0, 1, len(points))
    for line, name in enumerate(("ReLU", "ReLU6")):
        row = axes[line * (len(DIMENSIONS) + 2) :]
        for panel, shown, title in (
            (row[0], points, "input"),
            *((panel, pictures[name, n], f"{name}, n = {n}") for panel, n in zip(row[1:], DIMENSIONS, strict=False)),
        ):
            panel.scatter(*shown.T, c=colours, s=3, cmap="viridis")
            panel.set(title=title, xticks=[], yticks=[])
            panel.set_aspect("equal", adjustable="datalim")
    for panel, key, title in (
        (axes[len(DIMENSIONS) + 1], "scaled_error_mean", "error of the shape"),
        (axes[-1], "lost_share", "points lost"),
    ):
        for name in ACTIVATIONS:
            of = [row for row in rows if row["activation"] == name]
            panel.plot(DIMENSIONS, [row[key] for row in of], marker="o", markersize=3, label=name)
        panel.set(title=title, xlabel="n", ylim=(-0.02, None))
        panel.grid(alpha=0.3)
    axes[-1].legend(fontsize=7)
    return figure
