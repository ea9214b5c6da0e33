"""Whether a change of the recipe is worth making: runs with it beside runs without it, on photos neither has seen.

    handlens train FOLD.csv --recipe CHANGED.toml --out CHANGED        for each fold
    python benchmarks/recipe.py PHOTOS --base RUN... --changed RUN... --but-test-of RUN

Each pair of runs is of the same split and differs in a few fields of its recipe. Both judge their validation and test
photos (found in PHOTOS by content), but for those that are for the test of the run after --but-test-of, which choose
nothing: top-1, the loss with the temperature that validation gave, and the photos that one of them alone has right.
`benchmarks/results/recipe.json` keeps a row for each network, mode and change.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from crop_share import split_of
from handlens import checkpoint, evaluate, files, run
from handlens import photos as photos_room
from handlens.evaluate import calibration
from side_by_side import ROOT, machine

RESULTS = ROOT / "benchmarks" / "results" / "recipe.json"
OF_A_RUN = {"photos", "precision", "weights"}  # fields that say where it ran and on what


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--base", nargs="+", required=True)
    parser.add_argument("--changed", nargs="+", required=True)
    parser.add_argument("--but-test-of", required=True)
    given = parser.parse_args()
    found = photos_room.scan(given.photos)
    sha256 = photos_room.examine(found).sha256
    kept_out = set(split_of(given.but_test_of, "test"))
    pairs: dict[str, list[tuple[Any, Any]]] = {}
    for base, changed in zip(given.base, given.changed, strict=True):
        if any(split_of(base, name) != split_of(changed, name) for name in ("train", "validation", "test")):
            raise SystemExit(f"{base} and {changed} are not of one split")
        answers = tuple(judged(folder, found, sha256, kept_out) for folder in (base, changed))
        pairs.setdefault(difference(base, changed), []).append((answers[0], answers[1]))
        print(f"{base} and {changed}: {len(answers[0][0])} photos", file=sys.stderr, flush=True)
    rows = files.read_json(RESULTS)["rows"] if RESULTS.is_file() else {}
    for name, of_name in pairs.items():
        rows[name] = {"machine": machine(), "num_runs": len(of_name), **compared(of_name)}
    command = "python benchmarks/recipe.py PHOTOS --base RUN... --changed RUN... --but-test-of RUN"
    files.write_json(RESULTS, {"command": command, "rows": rows})
    table = Table("change", "runs", "photos", "top-1", "loss", "gained", "lost", "loss, each with its error")
    for name, row in rows.items():
        table.add_row(
            name, str(row["num_runs"]), str(row["num_photos"]), f"{row['top1'][0]:.1%}, {row['top1'][1]:.1%}",
            f"{row['loss'][0]:.3f}, {row['loss'][1]:.3f}", str(row["gained"]), str(row["lost"]),
            f"{row['loss_difference']:+.3f} ± {row['loss_error']:.3f}",
        )  # fmt: skip
    Console(width=160).print(table)


def difference(base: str, changed: str) -> str:
    """The network, the mode, and the fields of the recipes that differ, as "field 0.1 to 0.2"."""
    one, other = (checkpoint.read_facts(folder)["recipe"] for folder in (base, changed))
    fields = [key for key in one if key not in OF_A_RUN and one[key] != other.get(key)]
    return ", ".join([one["net"], one["mode"], *(f"{key} {one[key]} to {other.get(key)}" for key in fields)])


def judged(folder: str, found: Any, sha256: dict[str, str], kept_out: set[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of each photo that the run has not learned from, whether it is right and the loss, after its own temperature."""
    classifier = run.load(folder)
    right, loss, temperature = [], [], 1.0
    for split in ("validation", "test"):
        own = set(split_of(folder, split)) - kept_out
        chosen = found.select([i for i, path in enumerate(found.paths) if sha256.get(path) in own])
        scores = evaluate.score(classifier.infer, chosen.as_classes(classifier.classes), classifier.preprocess)
        assert scores.logits is not None
        if split == "validation":
            temperature = calibration.fit(scores.logits, scores.labels).temperature
        probabilities = calibration.softmax(scores.logits, temperature)[np.arange(len(chosen)), scores.labels]
        right.append(scores.logits.argmax(1) == scores.labels)
        loss.append(-np.log(np.maximum(probabilities, 1e-12)))
    return np.concatenate(right), np.concatenate(loss)


def compared(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Both of all pairs joined, first without the change; the error is one standard error of the mean difference."""
    right, loss = (np.stack([np.concatenate([pair[k][part] for pair in pairs]) for k in (0, 1)]) for part in (0, 1))
    change = loss[1] - loss[0]
    return {
        "num_photos": right.shape[1],
        "top1": right.mean(1).tolist(),
        "loss": loss.mean(1).tolist(),
        "gained": int((right[1] & ~right[0]).sum()),
        "lost": int((right[0] & ~right[1]).sum()),
        "loss_difference": float(change.mean()),
        "loss_error": float(change.std() / np.sqrt(len(change))),
    }


if __name__ == "__main__":
    main()
