"""What to leave out of photos, and a copy without it. The originals are only read."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from handlens import files
from handlens.errors import HandlensError
from handlens.photos.diagnose import BROKEN, Finding, suffix_of
from handlens.photos.examine import Findings
from handlens.photos.scan import SPLIT_OF_FOLDER, SUFFIXES, Photos

LISTS = (".csv", ".txt")
_OTHER_FILES = (
    *(".json", ".jsonl", ".html", ".htm", ".tsv", ".xls", ".xlsx", ".ods", ".md", ".pdf", ".xml", ".yaml", ".yml"),
    *(".toml", ".parquet", ".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", *SUFFIXES),
)


def leave_out(
    photos: Photos, findings: Findings, found: Iterable[Finding], splits: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Why each photo that is to be left out is, by path.

    Broken files; all photos of a label conflict, as none can know which class is right; of duplicates and
    near-duplicates all but one, where there are splits that of test before that of validation before train, then the
    largest. What is a matter of judgement (blurred, dark, suspected labels ...) is not among them.
    """
    out: dict[str, str] = {}
    found = list(found)
    if splits is None:
        splits = dict(zip(photos.paths, photos.splits or (), strict=False))
    rank = {"test": 0, "validation": 1, "train": 2}

    def worth(path: str) -> tuple[int, int, str]:
        return rank.get(splits.get(path, ""), 3), -findings.facts[path].width * findings.facts[path].height, path

    for finding in found:
        if finding.kind in BROKEN or (finding.kind == "too-large" and finding.photos[0] not in findings.facts):
            out[finding.photos[0]] = f"{finding.kind}: {finding.detail}"
        elif finding.kind == "label-conflict":
            out.update(dict.fromkeys(finding.photos, f"label-conflict: {finding.detail}"))
    for finding in found:
        if finding.kind in ("exact-duplicates", "near-duplicates"):
            left = sorted((path for path in finding.photos if path not in out), key=worth)
            for path in left[1:]:
                out[path] = f"{finding.kind}: of {left[0]}"
    return out


def is_list(target: str | os.PathLike[str]) -> bool:
    """Whether what is to be left out is listed in a file of this name; else the rest is copied to a folder."""
    return Path(target).suffix.lower() in LISTS


def check_target(target: str | os.PathLike[str], photos: Photos) -> None:
    """Raise HandlensError where neither a list nor a copy of the photos can be made, before they are looked at.

    That is when something is there, when the name is that of another kind of file, when a copy would lie within the
    folders of the classes (where it would be found with them), and when the place cannot be written.
    """
    target = Path(target)
    if os.path.lexists(target):
        raise HandlensError(f"{target} exists already", "choose another name or remove it")
    if target.suffix.lower() in _OTHER_FILES:
        raise HandlensError(
            f"{target} ends in {target.suffix}, expected a new folder or a list in {' or '.join(LISTS)}",
            "such as cleaned or leave-out.csv",
        )
    if not is_list(target) and _by_folder(photos) and target.resolve().is_relative_to(photos.root.resolve()):
        raise HandlensError(f"{target} lies within {photos.root}", "choose a folder outside the photos")
    files.check_place(target)


def write_list(path: str | os.PathLike[str], out: Mapping[str, str]) -> None:
    """Write what to leave out: a CSV of path and reason, or, with a name that ends in .txt, a path a line."""
    with files.atomic(path, "w") as file:
        if str(path).lower().endswith(".txt"):
            file.writelines(f"{photo}\n" for photo in out)
        else:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("path", "reason"))
            writer.writerows(out.items())


def write_copy(
    folder: str | os.PathLike[str],
    photos: Photos,
    findings: Findings,
    out: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Copy all photos but those in `out` into a new folder, whole or not at all; gives how many.

    Paths stay as they are, but for an ending that names another format than the file has. Photos of a CSV are laid
    out by split and class. Raises HandlensError where `check_target` does, when nothing would be left, or when the
    disk is full.
    """
    kept = photos.without(list(out))
    target = Path(folder)
    check_target(target, photos)
    if unread := [path for path in kept.paths if path not in findings.facts]:
        raise HandlensError(f"{unread[0]} {dict(findings.broken)[unread[0]]}", "no copy is made without it")
    if not len(kept):
        raise HandlensError(f"of {photos.root}, no photo would be left", "mend what was found first")
    taken: set[str] = set()
    with files.atomic_folder(target) as temporary:
        for number, place in enumerate(_places(kept, findings), 1):
            place = _unused(place, taken)
            (temporary / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept.path(number - 1), temporary / place)
            if progress:
                progress(number, len(kept))
    return len(kept)


def _places(photos: Photos, findings: Findings) -> Sequence[PurePosixPath]:
    """Where each photo goes, relative to the copy."""
    names = [photos.classes[k] for k in photos.labels]
    sides: Sequence[str] = photos.splits or ("",) * len(photos)
    by_folder, folders = _by_folder(photos), files.folder_names(photos.classes)
    places = []
    for path, name, side in zip(photos.paths, names, sides, strict=True):
        place = PurePosixPath(path) if by_folder else PurePosixPath(side, folders[name], Path(path).name)
        right = suffix_of(findings.facts[path])
        places.append(place if _fits(place.suffix, right) else place.with_suffix(right))
    return places


def _fits(suffix: str, right: str) -> bool:
    same = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif", ".heif": ".heic"}
    return same.get(suffix.lower(), suffix.lower()) == right


def _by_folder(photos: Photos) -> bool:
    """Whether all photos lie where a folder of photos would have them, as those of a CSV need not."""
    sides: Sequence[str] = photos.splits or ("",) * len(photos)
    names = (photos.classes[k] for k in photos.labels)
    return all(_class_folder(*row) for row in zip(photos.paths, names, sides, strict=True))


def _class_folder(path: str, name: str, side: str) -> bool:
    """Whether a photo lies where a folder of photos would have it: in class/ or split/class/."""
    parts = PurePosixPath(path).parts
    if (
        PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive or ".." in parts
    ):  # not below the photos' folder
        return False
    if side and SPLIT_OF_FOLDER.get(parts[0].lower()) != side:
        return False
    return parts[1 if side else 0 : -1][:1] == (name,)


def _unused(place: PurePosixPath, taken: set[str]) -> PurePosixPath:
    """`place`, with a number where another photo has it; some file systems do not tell A from a."""
    name = files.free_name(place.stem, lambda name: str(place.with_name(name)).casefold() not in taken, place.suffix)
    free = place.with_name(name)
    taken.add(str(free).casefold())
    return free
