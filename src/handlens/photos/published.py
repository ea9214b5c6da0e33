"""The published sets of photos: downloaded once, checked, unpacked into the cache."""

from __future__ import annotations

import csv
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from handlens import download, files
from handlens.errors import HandlensError, missing_extra

# Hashes as the checksum files of tensorflow/datasets (tf_flowers, oxford_flowers102) state them.
FLOWER_PHOTOS = (
    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
    "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
)
FLOWERS102 = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
FLOWERS102_FILES = {
    "102flowers.tgz": "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
    "imagelabels.mat": "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
    "setid.mat": "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
}
FLOWERS102_SPLITS = {"trnid": "train", "valid": "validation", "tstid": "test"}  # names in setid.mat
PUBLISHED = {"flower_photos": 3670, "flowers102": 8189}  # photos in each


def fetch_published(name: str, progress: Callable[[int, int], None] | None = None) -> Path:
    """What `scan` reads for a published set: a folder with a subfolder a class, or a CSV. Downloads it the first time.

    Raises HandlensError when it cannot be downloaded, or does not have the photos that it should.
    """
    folder = files.cache_folder() / "photos" / name
    found = folder / "photos.csv" if name == "flowers102" else folder
    if found.exists():
        return found
    downloads = folder.with_name(f"{name}.downloads")  # kept after a failure: the next try resumes
    fetch = functools.partial(download.fetch, folder=downloads, progress=progress)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as temporary:
            prepare = _flowers102 if name == "flowers102" else _flower_photos
            prepared = prepare(fetch, Path(temporary) / "unpacked")
            if (count := sum(1 for _ in prepared.rglob("*.jpg"))) != PUBLISHED[name]:
                raise HandlensError(
                    f"{name} has {count} photos, expected {PUBLISHED[name]}", f"remove {downloads} and try again"
                )
            files.patiently(lambda: prepared.rename(folder))
    except OSError as error:
        if not found.exists():  # else another process has made it meanwhile
            raise files.disk_error(error, folder) from error
    shutil.rmtree(downloads, ignore_errors=True)
    return found


def _flower_photos(fetch: Callable[..., Path], into: Path) -> Path:
    url, sha256 = FLOWER_PHOTOS
    return files.extract(fetch(url, sha256=sha256), into) / "flower_photos"


def _flowers102(fetch: Callable[..., Path], into: Path) -> Path:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise missing_extra("evaluate", "scipy") from None
    archive, labels_file, splits_file = (
        fetch(FLOWERS102 + name, sha256=sha256) for name, sha256 in FLOWERS102_FILES.items()
    )
    files.extract(archive, into)
    labels = loadmat(labels_file, squeeze_me=True)["labels"]
    splits = loadmat(splits_file, squeeze_me=True)
    names = FLOWERS102_NAMES.split(", ")
    with (into / "photos.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for key, split in FLOWERS102_SPLITS.items():
            writer.writerows((f"jpg/image_{i:05d}.jpg", names[labels[i - 1] - 1], split) for i in splits[key])
    return into


# The set's own names, in the order of its labels 1 to 102.
FLOWERS102_NAMES = (
    "pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon "
    "orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, "
    "yellow iris, globe-flower, purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily, "
    "pincushion flower, fritillary, red ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless "
    "gentian, artichoke, sweet william, carnation, garden phlox, love in the mist, mexican aster, alpine sea holly, "
    "ruby-lipped cattleya, cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil, sword "
    "lily, poinsettia, bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common dandelion, petunia, "
    "wild pansy, primula, sunflower, pelargonium, bishop of llandaff, gaura, geranium, orange dahlia, pink-yellow "
    "dahlia, cautleya spicata, japanese anemone, black-eyed susan, silverbush, californian poppy, osteospermum, "
    "spring crocus, bearded iris, windflower, tree poppy, gazania, azalea, water lily, rose, thorn apple, morning "
    "glory, passion flower, lotus, toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose, "
    "tree mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove, "
    "bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily"
)
