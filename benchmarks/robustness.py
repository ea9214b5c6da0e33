"""What harmed photos and other resize rules cost trained runs, on their own test photos:

    python benchmarks/robustness.py --photos FLOWERS RUN...

Writes benchmarks/results/robustness.json, where runs that are measured already are kept, and prints the two tables of
docs/confidence.md.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

from handlens import files, run
from handlens.cli.labelled import runs_split
from handlens.evaluate import robustness
from handlens.train.judge import versions

RESULTS = Path(__file__).resolve().parent / "results" / "robustness.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--photos", required=True, help="the runs' photos")
    given = parser.parse_args()
    results: dict[str, Any] = files.read_json(RESULTS) if RESULTS.is_file() else {"runs": {}}
    results["command"] = "python benchmarks/robustness.py --photos PHOTOS benchmarks/runs/*"
    results |= {"date": datetime.date.today().isoformat(), "versions": versions()}
    for folder in given.runs:
        if folder.name in results["runs"]:
            continue
        classifier = run.load(folder)
        photos = runs_split(str(folder), given.photos, "test").photos.as_classes(classifier.classes)
        results["runs"][folder.name] = robustness.measure(classifier.predict_batch, photos, classifier.preprocess)
        files.write_json(RESULTS, results)
    for line in tables(results["runs"]):
        print(line)


def tables(runs: dict[str, Any]) -> list[str]:
    """In Markdown: top-1 by harm and run, then by shape, rule and run."""
    names = [name.removeprefix("flowers_") for name in runs]
    lines = [f"| photos | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    for harm in robustness.HARMS:
        shares = [f"{found['harmed'][harm]['top1']:.1%}" for found in runs.values()]
        lines.append(f"| {harm} | {' | '.join(shares)} |")
    lines += ["", f"| shape, rule | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    for shape in robustness.SHAPES:
        for rule in robustness.RULES:
            shares = [f"{found['shapes'][shape][rule]['top1']:.1%}" for found in runs.values()]
            lines.append(f"| {shape}, {rule} | {' | '.join(shares)} |")
    return lines


if __name__ == "__main__":
    main()
