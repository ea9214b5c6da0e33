"""Features of a frozen network: what it gives, and the cache that serves only what belongs to it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handlens import files, nets, photos
from handlens.nets import Net
from handlens.preprocess import Preprocess
from handlens.train import features as room

PREPROCESS = Preprocess(image_px=32, resize_px=36)
SETTINGS: dict[str, Any] = {"min_area": 0.5, "flip": True, "precision": "32-true"}


@pytest.fixture(scope="module")
def net(lively: Callable[[Net], Net]) -> Net:
    torch.manual_seed(0)
    return lively(nets.create("mobilenet_v3_small", 3, width=0.35))


@pytest.fixture
def few(tiny_photos: Path, tmp_path: Path) -> photos.Photos:
    """Six photos that a test may change."""
    for name in ("blue sky", "花朵"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for number in range(3):
            shutil.copy(tiny_photos / name / f"{number:02}.jpg", tmp_path / "few" / name)
    return photos.scan(tmp_path / "few")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many photos' views were computed, each time that any were."""
    counts: list[int] = []
    compute = room.Frozen._compute

    def counting(self: room.Frozen, missing: Any, *rest: Any) -> None:
        counts.append(len(missing))
        compute(self, missing, *rest)

    monkeypatch.setattr(room.Frozen, "_compute", counting)
    return counts


def features(
    net: Net,
    few: photos.Photos,
    preprocess: Preprocess = PREPROCESS,
    views: int = 2,
    progress: Callable[[int, int], None] | None = None,
    **changed: Any,
) -> np.ndarray:
    frozen = room.Frozen(net, preprocess, **{**SETTINGS, **changed})
    return frozen.features(few, photos.examine(few).sha256, views, progress)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_the_first_view_is_what_the_network_gives_in_use(
    net: Net, few: photos.Photos, interpolation: Any, channels: Any
) -> None:
    preprocess = Preprocess(image_px=32, resize_px=36, interpolation=interpolation, channels=channels)
    vectors = features(net, few, preprocess)
    images, _ = next(photos.batches(few, preprocess, 6))
    with torch.no_grad():
        expected = net.embed(torch.from_numpy(preprocess.normalise(images)))
    assert vectors.shape == (3, 6, net.num_features)
    assert vectors.dtype == np.float32
    assert np.allclose(vectors[0], expected.numpy(), rtol=1e-4, atol=1e-4)
    assert vectors[0].std(0).mean() > 0.01
    assert np.abs(vectors[1] - vectors[0]).max() > 0.01
    assert np.abs(vectors[1] - vectors[2]).max() > 0.01


def test_no_views_no_more_than_the_photo(net: Net, few: photos.Photos) -> None:
    assert features(net, few, views=0).shape == (1, 6, net.num_features)


def test_a_second_call_computes_nothing(net: Net, few: photos.Photos, computed: list[int]) -> None:
    progress: list[tuple[int, int]] = []
    first = features(net, few, progress=lambda done, total: progress.append((done, total)))
    assert progress == [(6, 6)]
    again = features(net, few, progress=lambda done, total: progress.append((done, total)))
    assert computed == [6]
    assert progress == [(6, 6)]
    assert np.array_equal(first, again)


def test_what_is_lacking_is_known_before(net: Net, few: photos.Photos, computed: list[int]) -> None:
    sha256 = photos.examine(few).sha256
    frozen = room.Frozen(net, PREPROCESS, **SETTINGS)
    assert frozen.num_lacking(few, sha256, 2) == 6
    features(net, few.select([0, 1]), views=2)
    features(net, few.select([2]), views=0)
    assert (frozen.num_lacking(few, sha256), frozen.num_lacking(few, sha256, 2)) == (3, 4)
    assert frozen.num_lacking(few.select([0, 1]), sha256, 2) == 0
    assert computed == [2, 1]


def test_photos_are_known_by_their_content(net: Net, few: photos.Photos, computed: list[int]) -> None:
    first = features(net, few)
    (few.root / "blue sky" / "00.jpg").rename(few.root / "花朵" / "moved.jpg")
    moved = photos.scan(few.root)
    order = [few.paths.index(path) if path in few.paths else 0 for path in moved.paths]
    assert np.array_equal(features(net, moved), first[:, order])
    assert computed == [6]


def test_only_a_changed_photo_is_computed_again(net: Net, few: photos.Photos, computed: list[int]) -> None:
    first = features(net, few)
    shutil.copy(few.path(5), few.path(0))
    again = features(net, few)
    assert computed == [6]  # the content is known
    assert np.array_equal(again[:, 0], first[:, 5])
    from PIL import Image

    Image.new("RGB", (40, 48), (9, 99, 199)).save(few.path(1))
    third = features(net, few)
    assert computed == [6, 1]
    assert not np.allclose(third[0, 1], first[0, 1])
    assert np.array_equal(third[:, 2:], first[:, 2:])


def changed_weight(net: Net) -> Net:
    with torch.no_grad():
        net.blocks()[3].get_parameter(next(name for name, _ in net.blocks()[3].named_parameters())).flatten()[0] += 1
    return net


def changed_statistic(net: Net) -> Net:
    next(module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)).running_mean[0] += 1
    return net


@pytest.mark.parametrize("change", [changed_weight, changed_statistic])
def test_other_weights_are_not_served(
    net: Net, few: photos.Photos, computed: list[int], change: Callable[[Net], Net]
) -> None:
    first = features(net, few)
    again = features(change(copy.deepcopy(net)), few)
    assert computed == [6, 6]
    assert not np.array_equal(first, again)
    assert np.array_equal(features(net, few), first)
    assert computed == [6, 6]  # both are kept


def test_the_same_weights_with_another_padding_are_not_served(
    net: Net, few: photos.Photos, computed: list[int]
) -> None:
    first = features(net, few)
    other = nets.create("mobilenet_v3_small", 3, width=0.35, padding="tensorflow").eval()
    other.load_state_dict(net.state_dict())
    assert not np.array_equal(features(other, few), first)
    assert computed == [6, 6]


def test_another_classifier_is_served(net: Net, few: photos.Photos, computed: list[int]) -> None:
    first = features(net, few)
    assert np.array_equal(features(nets.replace_head(copy.deepcopy(net), 7), few), first)
    assert computed == [6]


@pytest.mark.parametrize(
    "changed",
    [
        {"min_area": 0.9},
        {"flip": False},
        {"precision": "bf16-mixed"},
        {"preprocess": Preprocess(image_px=32, resize_px=40)},
        {"preprocess": Preprocess(image_px=32, resize_px=36, mean=(0.5, 0.5, 0.5))},
    ],
)
def test_another_contract_is_not_served(
    net: Net, few: photos.Photos, computed: list[int], changed: dict[str, Any]
) -> None:
    features(net, few)
    features(net, few, **changed)
    assert computed == [6, 6]


def test_only_the_views_that_are_missing_are_computed(net: Net, few: photos.Photos, computed: list[int]) -> None:
    plain = features(net, few, views=0)
    more = features(net, few)
    assert computed == [6, 6]
    assert np.array_equal(more[:1], plain)
    assert np.array_equal(features(net, few, views=1), more[:2])
    assert np.array_equal(features(net, few, views=0, min_area=0.9, flip=False), plain)
    assert computed == [6, 6]


def test_what_was_computed_is_kept_where_it_is_stopped(
    net: Net, few: photos.Photos, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_torch = room._torch_embedder
    monkeypatch.setattr(room, "_torch_embedder", lambda *given: by_torch(*given)._replace(at_once=2))

    def ctrl_c(done: int, total: int) -> None:
        raise KeyboardInterrupt

    asked: list[int] = []
    of = room.by_onnxruntime
    monkeypatch.setattr(room, "by_onnxruntime", lambda device, number: (asked.append(number), of(device, number))[1])
    with pytest.raises(KeyboardInterrupt):
        features(net, few, progress=ctrl_c)
    assert features(net, few).shape == (3, 6, net.num_features)
    assert computed == [6, 4]
    assert asked == [18, 18]  # what is left is computed by the same engine


def test_photos_of_others_stay_in_the_file_and_out_of_memory(
    net: Net, few: photos.Photos, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    some, others = few.select([0, 1, 2]), few.select([3, 4, 5])
    held: list[set[str]] = []
    compute = room.Frozen._compute

    def looking(self: room.Frozen, missing: Any, wanted: Any, found: dict[int, dict[str, Any]], progress: Any) -> None:
        compute(self, missing, wanted, found, progress)
        held.append(set().union(*found.values()))

    monkeypatch.setattr(room.Frozen, "_compute", looking)
    first = features(net, some)
    second = features(net, others)
    assert [len(names) for names in held] == [3, 3] and not held[0] & held[1]
    assert np.array_equal(features(net, few), np.concatenate([first, second], 1))
    assert computed == [3, 3]


def test_two_trainings_at_once_keep_both_of_theirs(net: Net, few: photos.Photos, computed: list[int]) -> None:
    some, others = few.select([0, 1, 2]), few.select([3, 4, 5])
    first = features(net, some, progress=lambda *_: features(net, others))
    assert computed == [3, 3]
    assert np.array_equal(features(net, few)[:, :3], first)
    assert computed == [3, 3]


def test_a_photo_that_is_there_twice_is_computed_once(net: Net, few: photos.Photos, computed: list[int]) -> None:
    shutil.copy(few.path(0), few.path(2))
    found = features(net, few)
    assert computed == [5]
    assert np.array_equal(found[:, 0], found[:, 2]) and not np.array_equal(found[:, 0], found[:, 1])


@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
def test_the_plain_view_of_a_large_photo_is_as_in_use(net: Net, tmp_path: Path, resize: Any) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    (tmp_path / "large" / "one").mkdir(parents=True)
    for name, size in (("a", (90, 300)), ("b", (700, 400))):
        pixels = Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8)).resize(size)
        pixels.save(tmp_path / "large" / "one" / f"{name}.jpg")
    large = photos.scan(tmp_path / "large")
    preprocess = Preprocess(image_px=32, resize_px=36, resize=resize)
    images, _ = next(photos.batches(large, preprocess, 2))
    with torch.no_grad():
        expected = net.embed(torch.from_numpy(preprocess.normalise(images)))
    assert np.allclose(features(net, large, preprocess)[0], expected.numpy(), rtol=1e-4, atol=1e-4)


def test_views_do_not_depend_on_the_other_photos(net: Net, few: photos.Photos, empty_cache: Path) -> None:
    together = features(net, few)
    shutil.rmtree(empty_cache)
    alone = features(net, few.select([4]))
    assert np.allclose(together[:, 4:5], alone, atol=1e-5)


def test_a_cache_that_cannot_be_written_is_ignored(
    net: Net, few: photos.Photos, empty_cache: Path, computed: list[int]
) -> None:
    first = features(net, few)
    shutil.rmtree(empty_cache)
    empty_cache.write_text("a file is in the way")
    assert np.allclose(features(net, few), first, atol=1e-6)
    assert computed == [6, 6]


def test_a_full_disk_is_no_hindrance(
    net: Net, few: photos.Photos, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    sha256 = photos.examine(few).sha256

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    for _ in range(2):
        room.Frozen(net, PREPROCESS, **SETTINGS).features(few, sha256, 2)
    assert computed == [6, 6]


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 100])
def test_a_damaged_cache_is_ignored(
    net: Net, few: photos.Photos, empty_cache: Path, content: bytes, computed: list[int]
) -> None:
    first = features(net, few)
    for file in (empty_cache / "features").iterdir():
        file.write_bytes(content)
    assert np.allclose(features(net, few), first, atol=1e-6)
    assert computed == [6, 6]


def test_vectors_of_another_shape_are_ignored(
    net: Net, few: photos.Photos, empty_cache: Path, computed: list[int]
) -> None:
    import safetensors.numpy

    first = features(net, few)
    for file in (empty_cache / "features").iterdir():
        stored = safetensors.numpy.load_file(file)
        safetensors.numpy.save_file({**stored, "vectors": stored["vectors"][:, :-1].copy()}, file)
    assert np.allclose(features(net, few), first, atol=1e-6)
    assert computed == [6, 6]


def test_onnxruntime_gives_the_same(net: Net, few: photos.Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    by_torch = features(net, few)
    shutil.rmtree(files.cache_folder())
    monkeypatch.setattr(room, "_WORTH_CONVERTING", 1)
    asked: list[int] = []
    make = room._onnx_embedder

    def counting(*given: Any) -> Any:
        made = make(*given)

        def run(images: np.ndarray) -> np.ndarray:
            asked.append(len(images))
            return made.embed(images)

        return made._replace(embed=run)

    monkeypatch.setattr(room, "_onnx_embedder", counting)
    by_onnx = features(net, few)
    assert sum(asked) == 2 + 3 * len(few)  # the probe, then each view of each photo
    assert 0 < np.abs(by_onnx - by_torch).max() < 1e-3 * np.abs(by_torch).max()
    # One that gives something else is found by the probe, and left.
    shutil.rmtree(files.cache_folder())

    def wrong(*given: Any) -> Any:
        made = make(*given)
        return made._replace(embed=lambda images: made.embed(images) * 1.01)

    monkeypatch.setattr(room, "_onnx_embedder", wrong)
    assert np.array_equal(features(net, few), by_torch)
