"""Photos that were answered wrongly, kept by their right class: a folder that the next training takes as it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from handlens import files
from handlens.bundle import strip
from handlens.errors import counted
from handlens.serve.limits import RefusedError

LONGEST_PX = 1024  # longer side of a photo that is kept


class Corrections:
    """The folder for them, with a bound on how many there are."""

    def __init__(self, folder: Path, most: int) -> None:
        files.make_folder(folder)
        self.folder = folder
        self.most = most
        self.count = self._count()

    def _count(self) -> int:
        return sum(len(names) for _, _, names in os.walk(self.folder))

    def save(self, photo: bytes, name: str, classes: Sequence[str]) -> None:
        """Keep a readable photo as a JPEG without metadata, whole or not at all; twice the same photo is kept once.

        The last word counts: what was kept of it as another of the classes goes. `name` "" keeps it as none.
        Raises RefusedError for a name that is none of the classes, and when the folder is full.
        """
        if name and name not in classes:
            raise RefusedError(400, "there is no class of that name", "GET /v1/model lists them")
        digest = hashlib.sha256(photo).hexdigest()
        paths = {known: self.folder / own / f"{digest}.jpg" for known, own in files.folder_names(classes).items()}
        others = [path for known, path in paths.items() if known != name and path.exists()]
        if name and not paths[name].exists():
            if others:
                files.make_folder(paths[name].parent)
                os.replace(others.pop(), paths[name])
            else:
                self._add(paths[name], photo)
        for path in others:
            path.unlink(missing_ok=True)
            self.count -= 1

    def _add(self, path: Path, photo: bytes) -> None:
        if self.count >= self.most:
            self.count = self._count()  # the folder may have been emptied
        if self.count >= self.most:
            raise RefusedError(
                507,
                f"the limit of {counted(self.most, 'corrected photo')} is reached",
                "train with them, and empty the folder",
            )
        jpeg = strip(photo, LONGEST_PX)
        with files.atomic(path) as file:
            file.write(jpeg)
        self.count += 1
