"""Which photos there are: a folder, a CSV or a published set becomes a list of paths, labels and classes."""

from __future__ import annotations

import collections
import csv
import dataclasses
import difflib
import io
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handlens import files
from handlens.errors import HandlensError, counted
from handlens.photos.published import PUBLISHED, fetch_published

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif")
SPLITS = ("train", "validation", "test")
SPLIT_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_NOT_PHOTOS = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")  # what macOS, NAS boxes and Windows leave behind
_OWN_FILES = (  # what a run, a bundle, an unfinished run, a site, an experiment, and other folders of ours hold
    *({files.FACTS}, {"bundle.json"}, {files.RECIPE, files.SPLIT}, {"site.json", "sw.js"}),
    *({"numbers.json", "figure.png"}, {files.MADE}),
)
_LAYOUT = "put the photos of each class into a subfolder with the name of the class"


@dataclasses.dataclass(frozen=True, eq=False)
class Photos:
    """Labelled photos, by path; nothing is decoded.

    root:    the folder that `paths` are relative to.
    paths:   one a photo, with forward slashes; absolute where a CSV names a photo outside `root`.
    labels:  int64 (N,), indices into `classes`.
    classes: names, in the order of the network's outputs.
    splits:  "train", "validation" or "test" a photo, where folders or the CSV say so; else None.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Where photo `index` lies."""
        return self.root / self.paths[index]

    def counts(self) -> np.ndarray:
        """Photos in each class: int64 (len(classes),)."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def select(self, indices: Sequence[int] | np.ndarray) -> Photos:
        """These photos, in this order, or those where a mask (N,) is True; the classes stay."""
        given = np.asarray(indices)
        chosen = np.flatnonzero(given) if given.dtype == bool else given.astype(np.int64)
        return dataclasses.replace(
            self,
            paths=tuple(self.paths[i] for i in chosen),
            labels=self.labels[chosen],
            splits=tuple(self.splits[i] for i in chosen) if self.splits else None,
        )

    def without(self, paths: Collection[str]) -> Photos:
        """All photos but those at these paths."""
        out = set(paths)
        return self.select([i for i, path in enumerate(self.paths) if path not in out])

    def as_classes(self, classes: Sequence[str]) -> Photos:
        """The same photos with their labels counted in `classes`, matched by name.

        Photos may lack some of the classes, or have them in another order. Raises HandlensError with the classes that
        are not among `classes`, and which were expected.
        """
        position = {name: i for i, name in enumerate(classes)}
        names = [spelled(name, position) for name in self.classes]
        if extra := [name for name in names if name not in position]:
            missing = [name for name in classes if name not in names]
            near = difflib.get_close_matches(extra[0], missing, 1)
            raise HandlensError(
                f"{self.root} has classes that are not among the expected ones: {listed(extra)}",
                f"rename {extra[0]!r} to {near[0]!r}?"
                if near
                else f"those are {listed(classes)}: rename the folders, or train on these photos",
            )
        to_new = np.array([position[name] for name in names], dtype=np.int64)
        return dataclasses.replace(self, labels=to_new[self.labels], classes=tuple(classes))


def scan(
    source: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    *,
    keep_empty: bool = False,
) -> Photos:
    """Find the photos of a folder, a CSV or a published set.

    - A folder with one subfolder a class: photos may be nested deeper in it. Hidden files, what is not a photo by its
      suffix, and subfolders that handlens made, such as runs, are passed over. Classes are in sorted order.
    - A folder with `train` (or `training`) and, where there are, `validation` (`val`, `valid`) and `test` (`testing`),
      each with a subfolder a class: the same, with `splits`.
    - A CSV in UTF-8 with a header that names the columns path, label and, if wanted, split; paths relative to it.
      Spaces around a cell are no part of it, unless the header is in quotes.
    - "flower_photos" (3,670 photos, 5 classes) or "flowers102" (8,189 photos, 102 classes): downloaded into the cache
      the first time; `progress` is called with bytes (done, total).

    Raises HandlensError when there is no such source, no photos, an empty class, or a row that makes no sense.
    keep_empty: a class folder without photos to train on is among the classes then, and no error.
    """
    if not os.fspath(source):
        raise HandlensError("no photos were given", "name a folder of photos, or flower_photos")
    path = Path(source)
    if str(source) in PUBLISHED and not path.exists():
        path = fetch_published(str(source), progress)
    if path.is_dir():
        try:
            return _scan_folder(path, keep_empty)
        except PermissionError as error:
            raise HandlensError(f"{error.filename} may not be read", "change its permissions") from error
    if path.is_file() and path.suffix.lower() == ".csv":
        return _scan_csv(path)
    if path.exists():
        raise HandlensError(f"{source} is a file, expected a folder of photos or a CSV of path,label", _LAYOUT)
    near = difflib.get_close_matches(str(source), PUBLISHED, 1)
    names = " or ".join(PUBLISHED)
    raise HandlensError(
        f"there is no folder {source}", f"did you mean {near[0]}?" if near else f"check the path, or use {names}"
    )


def unsorted(source: str | os.PathLike[str]) -> str:
    """A sentence on the photos that lie beside a folder's class folders, in none of them; empty without any."""
    root = Path(source)
    loose = sorted(entry.name for entry in root.iterdir() if _is_photo(entry.name)) if root.is_dir() else []
    if not loose:
        return ""
    verbs = ("lies", "is") if len(loose) == 1 else ("lie", "are")
    return f"{counted(len(loose), 'photo')} {verbs[0]} in no class folder and {verbs[1]} not used: {listed(loose)}"


def check_trainable(photos: Photos, duplicates: Iterable[Sequence[str]] = ()) -> None:
    """Raise HandlensError unless one can train on these photos: two classes, each with a photo to learn from.

    Without splits of their own, one class needs three different photos; `duplicates`: groups of paths that are one.
    """
    if len(photos.classes) < 2:
        name = photos.classes[0]
        inner = photos.root / name
        nested = inner.is_dir() and len(_subfolders(inner)) > 1
        hint = f"did you mean {inner}?" if nested else "add a folder of photos that are something else"
        raise HandlensError(f"{photos.root} has one class only ({name}), expected at least two", hint)
    if len(photos) < len(photos.classes):
        few = counted(len(photos), "photo")
        raise HandlensError(f"{photos.root} has {few} for {len(photos.classes)} classes", "add photos")
    given = photos.splits or ("train",) * len(photos)
    train = photos.select([i for i, name in enumerate(given) if name == "train"])
    if empty := [name for name, count in zip(photos.classes, train.counts(), strict=True) if not count]:
        raise HandlensError(f"there is no photo to train on in {listed(empty)}", "add photos or remove the class")
    different = photos.without([path for group in duplicates for path in group[1:]])
    if not photos.splits and different.counts().max() < 3:
        raise HandlensError(
            f"no class of {photos.root} has three different photos, so none can be kept for validation and test",
            "add photos: some tens a class are a good start",
        )


def spelled(name: str, known: Collection[str]) -> str:
    """A class's name as it is among the known ones: macOS writes the letters of `ü` apart. Else as it is given."""
    if name in known:
        return name
    whole = unicodedata.normalize("NFC", name)
    return next((other for other in known if unicodedata.normalize("NFC", other) == whole), name)


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names for a message: quoted, joined by commas, cut after `most`."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _scan_folder(root: Path, keep_empty: bool) -> Photos:
    folders = _subfolders(root)
    if _named_splits(root, folders):
        return _scan_splits(root, folders, keep_empty)
    found = {name: photos_below(root, name) for name in folders}
    if not any(found.values()):
        loose = sum(_is_photo(entry.name) for entry in root.iterdir())
        if loose:
            raise HandlensError(f"{root} has {counted(loose, 'photo')} but no class folders with photos", _LAYOUT)
        raise HandlensError(f"{root} has no photos: {_what_is_in(root)}", _LAYOUT)
    if not keep_empty:
        _refuse_empty(root, found)
    return _photos(root, [(path, name, None) for name in folders for path in found[name]], folders)


def _named_splits(root: Path, folders: list[str]) -> bool:
    """Whether the subfolders are splits, not classes (a set of vehicles may well have a class "train")."""
    others = [name for name in folders if name.lower() not in SPLIT_OF_FOLDER]
    train = next((name for name in folders if SPLIT_OF_FOLDER.get(name.lower()) == "train"), None)
    if train is None or len(others) == len(folders) - 1 > 0:
        return False
    if others and _subfolders(root / train):
        raise HandlensError(
            f"{root} has split folders and also {listed(others)}",
            "move what is neither train, validation nor test away",
        )
    return not others


def _scan_splits(root: Path, folders: list[str], keep_empty: bool) -> Photos:
    rows: list[tuple[str, str, str | None]] = []
    by_class: dict[str, list[str]] = {}  # of the photos to train on
    train = next(name for name in folders if SPLIT_OF_FOLDER[name.lower()] == "train")
    for folder in sorted(folders, key=lambda name: SPLITS.index(SPLIT_OF_FOLDER[name.lower()])):
        split = SPLIT_OF_FOLDER[folder.lower()]
        if loose := sum(_is_photo(entry.name) for entry in (root / folder).iterdir()):
            raise HandlensError(f"{root / folder} has {counted(loose, 'photo')} in no class folder", _LAYOUT)
        for found in _subfolders(root / folder):
            paths = photos_below(root, f"{folder}/{found}")
            name = found if split == "train" else spelled(found, by_class)
            if split == "train":
                by_class[name] = paths
            elif paths and name not in by_class and keep_empty:
                by_class[name] = []
            elif paths and name not in by_class:
                raise HandlensError(
                    f"{root / folder} has the class {name!r}, of which there are no photos to train on",
                    f"add {root / train}/{name} or remove it",
                )
            rows += [(path, name, split) for path in paths]
    if not rows:
        raise HandlensError(f"{root} has no photos: {_what_is_in(root)}", _LAYOUT)
    if not keep_empty:
        _refuse_empty(root / train, by_class)
    return _photos(root, rows, sorted(by_class))


def _scan_csv(file: Path) -> Photos:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise HandlensError(f"{file} is not UTF-8 text", "save it as CSV in UTF-8") from None
    _check_mark(file, text)
    rows: list[tuple[str, str, str | None]] = []
    row_of: dict[str, int] = {}
    number = 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header, quoted = next(reader, []), text.startswith('"')
        columns = [name.strip().lower() for name in header]
        if columns.count("path") != 1 or columns.count("label") != 1:
            raise HandlensError(
                f"the first row of {file} is {','.join(header)[:80]!r}, expected the header path,label",
                "add the header; a third column, split, may follow",
            )
        for number, cells in enumerate(reader, 2):
            if not any(cells):
                continue
            if len(cells) != len(columns):
                raise HandlensError(
                    f"row {number} of {file} has {counted(len(cells), 'cell')}, expected {len(columns)}"
                )
            row = dict(zip(columns, cells if quoted else map(str.strip, cells), strict=True))
            path, label, split = _csv_path(file.parent, row["path"]), row["label"], None
            if not row["path"] or not label:
                raise HandlensError(f"row {number} of {file} has no {'label' if row['path'] else 'path'}")
            if re.search(r"[\x00-\x1f\x7f-\x9f]", path + label):
                raise HandlensError(f"row {number} of {file} has a control character: {path!r}, {label!r}")
            if path in row_of:
                raise HandlensError(f"row {number} of {file} names {path} again, after row {row_of[path]}")
            if (file.parent / path).is_dir():
                raise HandlensError(f"row {number} of {file} names {path}, a folder", "a row is for one photo: name it")
            if not (file.parent / path).is_file():
                raise HandlensError(
                    f"row {number} of {file} names {path}, which does not exist", "paths are relative to the CSV"
                )
            if "split" in columns:
                split = SPLIT_OF_FOLDER.get(row["split"].lower())
                if split is None:
                    raise HandlensError(
                        f"row {number} of {file} has the split {row['split']!r}, expected {listed(SPLITS)}"
                    )
            row_of[path] = number
            rows.append((path, label, split))
    except csv.Error as error:
        raise HandlensError(f"row {number + 1} of {file} cannot be read ({error})", "check its quotes") from None
    if not rows:
        raise HandlensError(f"{file} has no photos, only a header", "add rows of path,label")
    return _photos(file.parent, rows, sorted({label for _, label, _ in rows}))


def _check_mark(file: Path, text: str) -> None:
    """Raise HandlensError where the first row is of a table whose columns are not parted by commas, or says by what."""
    first = text.splitlines()[0] if text else ""
    parted = any({"path", "label"} <= {name.strip(' "').lower() for name in first.split(mark)} for mark in ";\t")
    if parted or first.strip(' "').lower().startswith("sep="):
        raise HandlensError(
            f"the first row of {file} is {first[:80]!r}, expected the header path,label",
            "save it with commas between the columns" if parted else "remove the first line",
        )


def _csv_path(root: Path, text: str) -> str:
    path = Path(text)
    inside = path.is_absolute() and path.is_relative_to(root.resolve())
    return (path.relative_to(root.resolve()) if inside else path).as_posix()


def _photos(root: Path, rows: list[tuple[str, str, str | None]], classes: Sequence[str]) -> Photos:
    label_of = {name: i for i, name in enumerate(classes)}
    check_names(root, (path for path, _, _ in rows))
    if bad := [name for name in classes if re.search(r"[\x00-\x1f\x7f-\x9f]", name)]:
        raise HandlensError(
            f"{root} has a class with a control character in its name: {listed(bad)}", "rename the folder"
        )
    return Photos(
        root=root,
        paths=tuple(path for path, _, _ in rows),
        labels=np.array([label_of[name] for _, name, _ in rows], dtype=np.int64),
        classes=tuple(classes),
        splits=tuple(split for _, _, split in rows if split) or None,
    )


def check_names(root: Path, paths: Iterable[str]) -> None:
    """Raise HandlensError where the name of a folder or of a photo below it is no valid UTF-8, as may be on Linux."""
    for path, where in ((str(root.resolve()), ""), *((path, f" in {root}") for path in paths)):
        try:
            path.encode()
        except UnicodeEncodeError:
            raise HandlensError(f"the name of {path!a}{where} is not valid UTF-8", "rename it") from None


def _refuse_empty(root: Path, found: dict[str, list[str]]) -> None:
    num_photos = sum(map(len, found.values()))
    if empty := [name for name, paths in found.items() if not paths]:
        few = f"{counted(num_photos, 'photo')} in {len(found)} class folders: " if num_photos < len(found) else ""
        raise HandlensError(
            f"{root} has {few}no photo in {listed(empty)}"
            if few
            else f"{root} has a class without photos: {listed(empty)}",
            "add photos to it or remove the folder",
        )


def _subfolders(folder: Path) -> list[str]:
    """The names of those that may be classes: all but hidden ones, and those that hold runs and no photos."""
    names = sorted(entry.name for entry in folder.iterdir() if _visible(entry.name) and entry.is_dir())
    return [name for name in names if not _holds_own(folder / name) or photos_below(folder, name)]


def _holds_own(folder: Path) -> bool:
    return any(_is_own(parent) for parent, _, _ in os.walk(folder))


def _is_own(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder was made by `train`, `export`, `explain` and so on: its pictures are no photos."""
    return any(all(os.path.isfile(os.path.join(folder, name)) for name in names) for names in _OWN_FILES)


def check_no_photos(folder: Path) -> None:
    """Raise HandlensError where pictures should not be written into a folder: others are there, which may be photos."""
    if folder.is_dir() and not _is_own(folder) and (found := photos_below(folder)):
        raise HandlensError(f"{folder} has photos in it, such as {found[0]}", "choose another --out, a new folder")


def photos_below(root: Path, folder: str = "") -> list[str]:
    """Photos in `root/folder` and below, relative to `root`, sorted; links are followed, but not in a circle.

    Folders that handlens made are passed over, but not `root` itself.
    """
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(root / folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        if real in seen or (Path(parent) != root and _is_own(parent)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if _visible(name)]
        paths = [Path(parent, name) for name in names if _is_photo(name)]
        # A pipe would block its reader for ever; a link to nothing stays, and is reported as broken.
        found += [path.relative_to(root).as_posix() for path in paths if path.is_file() or not path.exists()]
    return sorted(found)


def _raise(error: OSError) -> Any:
    raise error


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _NOT_PHOTOS


def _is_photo(name: str) -> bool:
    return _visible(name) and name.lower().endswith(SUFFIXES)


def _what_is_in(root: Path) -> str:
    """What was found in place of photos, for a message."""
    suffixes: collections.Counter[str] = collections.Counter()
    for _, folders, names in os.walk(root):
        folders[:] = [name for name in folders if _visible(name)]
        suffixes.update(Path(name).suffix.lower() or "no suffix" for name in names if _visible(name))
    if not suffixes:
        return "it is empty"
    return "found files with " + ", ".join(f"{suffix} ({count})" for suffix, count in suffixes.most_common(4))
