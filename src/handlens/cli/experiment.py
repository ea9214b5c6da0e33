"""`handlens experiment`: the papers' own experiments, each a figure and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def experiment(
    name: str = typer.Argument("", metavar="NAME", show_default=False, help="Which one; without it they are listed."),
    out: Path | None = typer.Option(
        None, help="Folder for figure.png and numbers.json; earlier ones there are replaced. [experiments/NAME]"
    ),
    photos: str | None = typer.Option(None, help="Photos to train on, a folder a class. [flowers drawn by program]"),
    seed: int | None = typer.Option(None, min=0, max=2**31, help="Decides every random choice. [0]"),
    epochs: int | None = typer.Option(None, min=1, help="Where networks are trained: how long. [by experiment]"),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Repeat an experiment of the papers on a small scale: what it found, its numbers and its figure.

    Most take seconds, those that train a few minutes. Each says which photos, split and seed it used, how long it
    took, and where the paper's finding does not show at this scale.

    \b
    Examples:
      handlens experiment
      handlens experiment bottleneck
      handlens experiment residual --epochs 20 --seed 1
      handlens experiment normalisation --photos photos --out tour/normalisation
    """
    from handlens import experiments, files
    from handlens.cli import screen
    from handlens.photos.scan import check_no_photos

    if not name:
        _list(json)
        return
    settings = {"photos": photos, "seed": seed, "epochs": epochs}
    given = {key: value for key, value in settings.items() if value is not None}
    folder = out or Path("experiments", name)
    numbers, figure = folder / "numbers.json", folder / "figure.png"
    if name in experiments.EXPERIMENTS:  # of another nothing would be written
        files.check_place(numbers)
        files.check_place(figure)
        check_no_photos(folder)
    with screen.progress(name) as update:
        report = experiments.run(name, progress=update, **given)
    facts = report.to_dict()
    files.make_own_folder(folder)
    files.write_json(numbers, facts)
    with files.atomic(figure) as file:
        file.write(report.result.png())
    if json:
        screen.print_json(facts | {"out": folder})
        return
    for title, rows in report.result.tables.items():
        columns = [column.replace("_", " ") for column in rows[0]]
        screen.table(title, columns, [[_cell(value) for value in row.values()] for row in rows])
        screen.say("")
    screen.say(facts["finding"])
    screen.say(f"\nmeasured on: {_measured_on(facts['data'])}")
    screen.say(f"in {report.seconds:.0f} s; {figure}, {numbers}")


def _list(json: bool) -> None:
    from handlens import experiments
    from handlens.cli import screen

    if json:
        screen.print_json([{"name": name, **about._asdict()} for name, about in experiments.EXPERIMENTS.items()])
        return
    rows = [(name, about.line, about.paper) for name, about in experiments.EXPERIMENTS.items()]
    screen.table("", ("name", "what", "after"), rows)
    screen.say("\nnext    handlens experiment NAME")


def _measured_on(data: dict[str, Any]) -> str:
    """Photos, split and seed in one line; of the classes their number."""
    told = {key.replace("_", " "): len(value) if key == "classes" else value for key, value in data.items()}
    return "; ".join(f"{key}: {_cell(value)}" for key, value in told.items())


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(str(_cell(member)) for member in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
