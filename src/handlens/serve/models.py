"""The bundles that are served: loaded, proven on their golden photos, and replaced when their files change."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from handlens import bundle as bundle_room
from handlens.bundle import MANIFEST, Bundle
from handlens.errors import HandlensError, counted
from handlens.run import Classifier, bundles
from handlens.serve.batching import Batcher, best_size
from handlens.serve.limits import RefusedError

log = logging.getLogger("handlens.serve")

Stamp = tuple[int, int, int]  # of a bundle's file: when it changed, its size, which it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A bundle that answers its golden photos as the trained network did.

    version: 12 hexadecimal digits, the same for the same content.  batch: photos at once that are fastest here.
    """

    name: str
    version: str
    classifier: Classifier
    batch: int

    def brief(self) -> dict[str, Any]:
        """What it is, in a line."""
        classifier = self.classifier
        return {
            "name": self.name,
            "version": self.version,
            "net": classifier.net,
            "runtime": classifier.runtime,
            "precision": classifier.precision,
        }

    def facts(self) -> dict[str, Any]:
        """All that may be known of it: see `GET /v1/model`."""
        rejection = self.classifier.rejection
        return {
            **self.brief(),
            "classes": list(self.classifier.classes),
            "preprocess": self.classifier.preprocess.to_dict(),
            "rejection": rejection.to_dict() if rejection else None,
            "card": dict(self.classifier.card),
        }


def load(name: str, path: Path, threads: int = 0) -> Model:
    """Load a bundle and let it prove itself.

    Raises HandlensError when it is none, is damaged, cannot be run here, and when it answers one of its golden photos
    differently than the trained network: the sentence names the photos.
    """
    if path.exists() and not bundle_room.is_bundle(path):
        raise HandlensError(f"{path} is no bundle", "make one with `handlens export RUN --to onnx`")
    found = bundles.check(path, threads)
    wrong = [answer for answer in found.answers if not answer.ok]
    if wrong:
        named = ", ".join(
            f"{a.photo} ({a.answered} {a.answered_p:.1%}, was {a.expected} {a.expected_p:.1%})" for a in wrong
        )
        raise HandlensError(
            f"{path} answers {len(wrong)} of its {counted(len(found.answers), 'golden photo')} differently than the "
            f"trained network, and is not served: {named}",
            "export it again, or use another runtime",
        )
    classifier = bundles.classifier_of(path, found.bundle, threads)  # what was proven, whatever the file is by now
    return Model(
        name=name,
        version=version_of(found.bundle),
        classifier=classifier,
        batch=best_size(classifier.answers, classifier.preprocess.image_px),
    )


def version_of(bundle: Bundle) -> str:
    """The content of a bundle as 12 hexadecimal digits: artifact, classes, pixels, card and golden photos."""
    digest = hashlib.sha256()
    for member, content in sorted(bundle.artifact.items()):
        digest.update(f"{member} {len(content)}\n".encode() + content)
    rest = {
        field.name: getattr(bundle, field.name)
        for field in dataclasses.fields(bundle)
        if field.name not in ("artifact", "golden", "preprocess")
    }
    rest |= {"preprocess": bundle.preprocess.to_dict(), "golden": [list(g.probabilities) for g in bundle.golden]}
    digest.update(json.dumps(rest, sort_keys=True, default=repr).encode())
    return digest.hexdigest()[:12]


class Served(NamedTuple):
    """A model and the queue before its network. A request that has it keeps it, whatever is served by then."""

    model: Model
    batcher: Batcher


class Models:
    """The models by name. The first is the one that answers where none is named."""

    def __init__(self, paths: Mapping[str, Path], threads: int = 0) -> None:
        self.paths = dict(paths)
        self.threads = threads
        self._stamps = {name: stamp(path) for name, path in paths.items()}
        self._models = {name: load(name, path, threads) for name, path in paths.items()}
        self._served: dict[str, Served] = {}

    def begin(self, batcher_of: Callable[[Model], Batcher]) -> None:
        """From here on there is something to `get`."""
        self._batcher_of = batcher_of
        self._served = {name: Served(model, batcher_of(model)) for name, model in self._models.items()}

    @property
    def ready(self) -> bool:
        """Whether photos are answered."""
        return bool(self._served)

    def all(self) -> list[Model]:
        """The models as they are now."""
        return list(self._models.values())

    def get(self, name: str = "") -> Served:
        """The model of a name as it is now, "" for the first. Raises RefusedError for an unknown name."""
        served = self._served.get(name or next(iter(self.paths)))
        if served is None:
            raise RefusedError(404, "there is no model of that name", f"the models are: {', '.join(self.paths)}")
        return served

    async def watch(self, every_s: float, swapped: Callable[[Model], None] | None = None) -> None:
        """Look at the files for ever; a file that changed, and then stays for one look, is loaded in its model's place.

        One that cannot be served is reported in the log, once, and the old version stays.
        """
        seen = dict(self._stamps)
        while True:
            await asyncio.sleep(every_s)
            for name, path in self.paths.items():
                now = await asyncio.to_thread(stamp, path)
                settled, seen[name] = now == seen[name], now
                if now is None or not settled or now == self._stamps[name]:
                    continue
                self._stamps[name] = now
                try:
                    model = await asyncio.to_thread(load, name, path, self.threads)
                except Exception as error:
                    log.error("a new version is not served", extra={"model": name, "error": str(error)})
                    continue
                before = self._models[name].version
                self._models[name] = model
                self._served[name] = Served(model, self._batcher_of(model))
                log.info("a new version is served", extra={"model": name, "version": model.version, "before": before})
                if swapped:
                    swapped(model)


def stamp(path: Path) -> Stamp | None:
    """What changes when a bundle is replaced; None when it is not there."""
    try:
        found = (path / MANIFEST if path.is_dir() else path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
