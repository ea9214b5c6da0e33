"""`handlens predict`: photos in, guesses out."""

from __future__ import annotations

import collections
import glob
import os
from pathlib import Path
from typing import Any

import typer

UNSURE, UNKNOWN = "unsure", "unknown"
FEW = 32  # no bar for so many photos or fewer
SHOWN = 1000  # rows of the table, where there is a CSV with all


def predict(
    run: str = typer.Argument(
        ..., metavar="RUN", help="A run's folder, a bundle, or a net's name together with --weights."
    ),
    photo: list[str] = typer.Argument(..., metavar="PHOTO", help="Photos, folders (with all below them) or globs."),
    weights: str = typer.Option("", help="A weight file for the net named in place of a run, or `imagenet`."),
    top: int = typer.Option(3, min=1, help="Guesses a photo."),
    csv: Path | None = typer.Option(None, help="Write the guesses as a CSV file."),
    sort_into: Path | None = typer.Option(
        None, metavar="DIR", help="Copy each photo into a folder of its answer here, apart from the photos."
    ),
    min_probability: float = typer.Option(
        0.0, min=0.0, max=1.0, help=f"Answers below this are sorted into `{UNSURE}`."
    ),
    threads: int = typer.Option(0, min=0, help="Threads that compute the network; 0: its runtime's choice."),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
) -> None:
    """Say what is on photos, or that it is none of the classes: unknown.

    A run needs torch; a bundle, as `handlens export` makes it, needs the runtime that it was made for.

    A run or bundle that knows from which score on a photo is one of its classes says `unknown` below that; the guesses
    are given all the same. --sort-into puts these photos into a folder `unknown`. Its DIR may not hold the photos, nor
    lie within them or within those that the run was trained on, where the copies would be sorted or trained on again.

    Photos that cannot be read are listed and the rest goes on; the exit code is 2 only if none could be read.

    \b
    Examples:
      handlens predict runs/flowers garden.jpg
      handlens predict runs/flowers holiday "more/*.jpg" --top 1 --csv answers.csv
      handlens predict runs/flowers holiday --sort-into sorted --min-probability 0.7
      handlens predict flowers.zip garden.jpg --threads 2
      handlens predict mobilenet_v2 --weights v2.safetensors garden.jpg --json
    """
    from handlens import files
    from handlens import run as run_room
    from handlens.cli import screen
    from handlens.errors import PhotoError, counted

    photos = gather(photo)
    if csv:
        files.check_place(csv, ".csv")
        _check_answers(csv)
    if sort_into:
        _check_apart(sort_into, photo, photos, "" if weights else run)
    if weights:
        with screen.progress("downloading") as update:
            classifier = run_room.from_weights(run, weights, progress=update, threads=threads)
    else:
        classifier = run_room.load(run, threads)
    if classifier.note:
        screen.note(classifier.note)
    folders = files.folder_names((UNSURE, UNKNOWN, *classifier.classes))
    results: list[dict[str, Any]] = []  # of many photos that are written to a CSV, the first
    rows = _Rows(top)
    num_read = 0
    copied: collections.Counter[str] = collections.Counter()
    taken: set[Path] = set()

    def collect(update: Any = None) -> None:
        nonlocal num_read
        for path, answer in classifier.answer_many(photos, top, progress=update):
            result: dict[str, Any] = {"photo": str(path)}
            if isinstance(answer, PhotoError):
                result["error"] = str(answer)
                screen.note(f"left out: {answer}")
            else:
                num_read += 1
                result["guesses"] = [guess._asdict() for guess in answer.guesses]
                result |= {"unknown": answer.unknown, "score": answer.score}
                if sort_into:
                    best = answer.guesses[0]
                    name = UNKNOWN if answer.unknown else best.name if best.probability >= min_probability else UNSURE
                    result["copied_to"] = str(_copy(path, sort_into / folders[name], taken))
                    copied[folders[name]] += 1
            if csv:
                rows.add(result)
            if json or not csv or len(results) < SHOWN:
                results.append(result)

    if len(photos) > FEW:
        with screen.progress("predicting", len(photos)) as update:
            collect(update)
    else:
        collect()
    if sort_into:
        each = ", ".join(f"{name} {number}" for name, number in sorted(copied.items()))
        verb = "is" if copied.total() == 1 else "are"
        screen.note(f"{counted(copied.total(), 'photo')} {verb} in {sort_into}: {each}")
    if csv:
        rows.write(csv)
        screen.note(f"the answers are in {csv}")
    if json:
        screen.print_json(results)
    else:
        _show(results, classifier.rejection.threshold if classifier.rejection else 0.0)
        if len(photos) > len(results):
            screen.note(f"and {len(photos) - len(results)} more in {csv}")
    if not num_read:
        raise typer.Exit(2)


def _check_answers(csv: Path) -> None:
    """Raise HandlensError where a file is there that is none of answers: labels that were typed, say."""
    from handlens.errors import HandlensError

    if csv.is_file():
        with csv.open("rb") as file:
            if file.read(20) not in (b"", b"photo,guess_1,probab"):
                raise HandlensError(f"{csv} exists already and holds no answers", "choose another name or remove it")


def gather(arguments: list[str]) -> list[Path]:
    """The photos that the arguments name, each once: files, folders with all photos below them, and globs.

    A name that is no file, no folder and no glob stays, and is reported as missing. Raises HandlensError when a
    folder or a glob holds no photo.
    """
    from handlens.errors import HandlensError
    from handlens.photos.scan import photos_below

    photos: list[Path] = []
    for argument in arguments:
        named = [argument]
        if not os.path.lexists(argument) and glob.has_magic(argument):  # a shell that does not expand, or quotes
            named = sorted(glob.glob(argument, recursive=True))
        found: list[Path] = []
        for path in map(Path, named):
            if path.is_dir():
                found += [path / name for name in photos_below(path)]
            else:
                found.append(path)
        if not found:
            raise HandlensError(
                f"there is no photo in {argument}", "check the path; photos are JPEG, PNG, WebP and so on"
            )
        photos += found
    return list(dict.fromkeys(photos))


def _check_apart(target: Path, arguments: list[str], photos: list[Path], run: str) -> None:
    """Raise HandlensError where `target` is no folder to sort the arguments' photos into.

    It may be new or hold what was sorted before. It may not hold the photos themselves, nor lie within a folder that is
    sorted, or that `run` was trained on: the copies would be sorted, or trained on, the next time.
    """
    from handlens import bundle, files
    from handlens.errors import HandlensError

    if not target.is_dir():
        if os.path.lexists(target):
            raise HandlensError(f"{target} is a file, expected a folder to sort photos into", "choose another name")
        files.check_place(target)
    place = target.resolve()
    for argument in arguments:
        if os.path.isdir(argument) and place.is_relative_to(Path(argument).resolve()):
            raise HandlensError(
                f"{target} lies within {argument}, whose photos are to be sorted", "choose a folder outside it"
            )
    for photo in photos:
        if photo.resolve().is_relative_to(place):
            raise HandlensError(f"{target} holds {photo}, which is to be sorted", "choose a folder beside the photos")
    if run and not bundle.is_bundle(Path(run)):
        for trained in _trained_on(run):
            if place.is_relative_to(trained.resolve()):
                raise HandlensError(
                    f"{target} lies within {trained}, which {run} was trained on: what is sorted would become "
                    "training photos",
                    "choose a folder outside it",
                )


def _trained_on(run: str) -> list[Path]:
    """The folders of a run's photos, where they still are; of a fold those that were cut, of a CSV those in it."""
    from handlens import checkpoint, files
    from handlens import photos as photos_room
    from handlens.errors import HandlensError

    if not Path(run, files.FACTS).is_file():
        return []
    recipe = checkpoint.read_facts(run)["recipe"]
    named = {str(recipe.get("photos", "")), str(recipe.get("add", ""))}
    plan = Path(run).resolve().parent / files.PLAN
    if plan.is_file():
        named.add(str(files.read_json(plan).get("photos", "")))
    folders = [Path(name) for name in named if name and Path(name).is_dir()]
    for name in named:
        if Path(name).is_file():
            try:
                found = photos_room.scan(name)
            except HandlensError:  # it is no longer what it was
                continue
            folders += {found.path(index).parent for index in range(len(found))}
    return folders


def _copy(photo: Path, folder: Path, taken: set[Path]) -> Path:
    """Copy `photo` into `folder`, under a name that nothing else there has, with its time of change.

    taken: where this command has copied others to. What is there of an earlier one with the same content stays.
    """
    import filecmp
    import shutil

    from handlens import files

    def free(tried: str) -> bool:
        there = folder / tried
        own = there not in taken and there.is_file() and filecmp.cmp(photo, there, shallow=False)
        return own or not os.path.lexists(there)

    target = folder / files.free_name(photo.stem, free, photo.suffix)
    taken.add(target)
    if not target.exists():
        with photo.open("rb") as source, files.atomic(target) as file:
            shutil.copyfileobj(source, file)
        shutil.copystat(photo, target)
    return target


class _Rows:
    """The rows of a CSV, as text: a hundred bytes a photo."""

    def __init__(self, top: int) -> None:
        import csv
        import io

        self._text = io.StringIO()
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._columns = [name for rank in range(1, top + 1) for name in (f"guess_{rank}", f"probability_{rank}")]
        self._writer.writerow(["photo", *self._columns, "unknown", "score", "error"])

    def add(self, result: dict[str, Any]) -> None:
        """A photo's answer."""
        guesses = result.get("guesses", ())
        cells = [cell for guess in guesses for cell in (guess["name"], f"{guess['probability']:.6f}")]
        cells += [""] * (len(self._columns) - len(cells))
        score = result.get("score")
        cells += [str(result.get("unknown", "")).lower(), "" if score is None else f"{score:.6f}"]
        self._writer.writerow([result["photo"], *cells, result.get("error", "")])

    def write(self, path: Path) -> None:
        """All rows, atomically."""
        from handlens import files

        with files.atomic(path) as file:
            file.write(self._text.getvalue().encode("utf-8", "surrogateescape"))  # file names byte for byte


def _told_apart(low: float, high: float) -> tuple[str, str]:
    """Both in three digits, or in as many as it takes for them to look different."""
    pairs = ((f"{low:.{digits}g}", f"{high:.{digits}g}") for digits in range(3, 18))
    return next((pair for pair in pairs if pair[0] != pair[1]), (repr(low), repr(high)))


def _show(results: list[dict[str, Any]], threshold: float) -> None:
    from handlens.cli import screen

    lines = []
    for result in results:
        first, *others = result.get("guesses") or [None]
        if first:
            also = ", ".join(f"{guess['name']} {guess['probability']:.1%}" for guess in others)
            if result["unknown"]:
                why = "score {}, below {}".format(*_told_apart(result["score"], threshold))
                nearest = f"{first['name']} {first['probability']:.1%}"
                lines.append((result["photo"], UNKNOWN, "–", f"{why}; nearest: {nearest}"))
            else:
                lines.append((result["photo"], first["name"], f"{first['probability']:.1%}", also))
    if lines:
        screen.table("", ("photo", "answer", "probability", "or"), lines)
