"""Mode "last" on cached maps: a whole network comes out, the cache serves only what belongs to it, and what cannot be
done by maps is done on photos."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

import handlens
from handlens import files, nets, photos
from handlens.nets import Net
from handlens.preprocess import Preprocess
from handlens.train import Recipe, Run, Watcher, last, loop
from handlens.train import features as features_room
from handlens.train.cut import Cut
from handlens.train.pixels import Fixed

PREPROCESS = Preprocess(image_px=64, resize_px=72)
RECIPE = Recipe(
    net="mobilenet_v3_small", mode="last", image_px=64, train_px=48, batch_size=8, epochs=3, augment="light",
    last_views=2, last_blocks=4, warmup_epochs=1.0, ema_decay=0.5, lr=0.01, precision="32-true",
)  # fmt: skip
CPU = torch.device("cpu")
Log = list[dict[str, float]]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many views' maps were computed, each time that any were."""
    counts: list[int] = []
    compute = features_room.Frozen._compute

    def counting(self: Any, missing: Any, wanted: dict[str, list[int]], *rest: Any) -> None:
        if len(self.shape) > 1:  # not a vector of features
            counts.append(sum(map(len, wanted.values())))
        compute(self, missing, wanted, *rest)

    monkeypatch.setattr(features_room.Frozen, "_compute", counting)
    return counts


@pytest.fixture(scope="module")
def found(tiny_photos: Path) -> tuple[dict[str, photos.Photos], dict[str, str]]:
    scanned = photos.scan(tiny_photos)
    sha256 = photos.examine(scanned).sha256
    return photos.split(scanned, sha256), sha256


@pytest.fixture
def net(lively: Callable[[Net], Net]) -> Net:
    torch.manual_seed(0)
    return lively(nets.create("mobilenet_v3_small", 3, width=0.35))


def cut_for(net: Net, found: Any, recipe: Recipe = RECIPE, **more: Any) -> tuple[Cut | None, str]:
    return last.cut_for(net, recipe, found[0]["train"], found[0]["validation"], **more)


def maps_of(net: Net, found: Any, recipe: Recipe = RECIPE, preprocess: Preprocess = PREPROCESS) -> Any:
    parts, why = cut_for(copy.deepcopy(net), found, recipe)
    assert parts and not why
    return last.maps_of(parts, recipe, preprocess, found[0]["train"], found[0]["validation"], found[1], CPU)


def changed(**values: Any) -> Recipe:
    return Recipe(**{**vars(RECIPE), **values})


def test_maps_are_the_frozen_blocks_of_the_views(net: Net, found: Any) -> None:
    parts, _ = cut_for(net, found)
    assert parts
    batches, fixed = maps_of(net, found)
    assert batches.maps.shape == (2, 30, *parts.shape(48))
    assert batches.maps.dtype == np.float16
    assert np.abs(batches.maps[0].astype(float) - batches.maps[1]).max() > 0.01  # two different crops
    images, labels = next(photos.batches(found[0]["validation"], PREPROCESS, 8))
    with torch.no_grad():
        expected = parts.trunk.embed(torch.from_numpy(PREPROCESS.normalise(images))).numpy()
    given, same_labels = next(iter(fixed))
    assert np.abs(given - expected).max() < 2e-3 * np.abs(expected).max()
    assert np.array_equal(labels, same_labels)
    assert sum(len(labels) for _, labels in fixed) == len(found[0]["validation"])


def test_epochs_show_the_views_in_turn(net: Net, found: Any) -> None:
    batches, _ = maps_of(net, found)
    indices = np.array([3, 0, 7])
    seen = [batches.make(indices, [RECIPE.seed, epoch, 0, 0]) for epoch in range(3)]
    for maps, targets in seen:
        assert maps.shape[0] == 3 and maps.dtype == torch.float32
        assert targets.sum(1).allclose(torch.ones(3))
        assert (targets.argmax(1).numpy() == batches.labels[indices]).all()
        assert targets.min().item() == pytest.approx(RECIPE.label_smoothing / 3)
    for first, second, third in zip(*(maps for maps, _ in seen), strict=True):
        assert not torch.equal(first, second)
        assert torch.equal(first, third)  # of two views


def test_the_whole_network_is_trained_and_judged(net: Net, found: Any, tmp_path: Path) -> None:
    """The figures of the last epoch are those of the finished network on the photos."""
    before = copy.deepcopy(net)
    recipe = changed(epochs=1, warmup_epochs=0.0)
    parts, _ = cut_for(net, found, recipe)
    assert parts
    maps = last.maps_of(parts, recipe, PREPROCESS, found[0]["train"], found[0]["validation"], found[1], CPU)
    fabric = Fabric(accelerator="cpu", devices=1)
    assert maps
    whole, log = last.fit(parts, maps, recipe, PREPROCESS, tmp_path, fabric)
    assert type(whole) is type(before) and not whole.training
    assert whole.state_dict().keys() == before.state_dict().keys()
    frozen = {id(p) for block in whole.blocks()[:-4] for p in block.parameters()}
    for (key, old), new in zip(before.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(old, new) == (id(new) in frozen), key
    validation = Fixed(found[0]["validation"], PREPROCESS, 64)
    with contextlib.closing(loop.Pixels(found[0]["train"], PREPROCESS, 64)) as pixels:
        make = loop.Batches(pixels, recipe, PREPROCESS, CPU)
        loss, top1 = loop.judge(whole, validation, make, fabric)
    assert log[0]["validation_loss"] == pytest.approx(loss, rel=1e-3)
    assert log[0]["validation_top1"] == top1


def test_a_second_run_with_another_recipe_computes_nothing(net: Net, found: Any, computed: list[int]) -> None:
    first, judged = maps_of(net, found)
    assert computed == [60, 3]
    other = changed(
        lr=0.5,
        epochs=2,
        dropout=0.7,
        ema_decay=0.0,
        label_smoothing=0.0,
        seed=4,
        bn_momentum=0.3,
        precision="bf16-mixed",
    )
    again, judged_again = maps_of(net, found, other)
    assert computed == [60, 3]
    assert np.array_equal(again.maps, first.maps) and np.array_equal(judged_again.maps, judged.maps)
    assert maps_of(net, found, changed(last_views=3))[0].maps.shape[0] == 3
    assert computed == [60, 3, 30]  # one view more


def another_weight(net: Net) -> Net:
    with torch.no_grad():
        net.blocks()[2].get_parameter(next(name for name, _ in net.blocks()[2].named_parameters())).flatten()[0] += 1
    return net


@pytest.mark.parametrize(
    ("other_net", "recipe", "preprocess"),
    [
        (another_weight, {}, PREPROCESS),
        (copy.copy, {"last_blocks": 3}, PREPROCESS),
        (copy.copy, {}, Preprocess(image_px=64, resize_px=80)),
        (copy.copy, {}, Preprocess(image_px=64, resize_px=72, mean=(0.5, 0.5, 0.5))),
    ],
)
def test_other_weights_or_another_contract_are_not_served(
    net: Net, found: Any, computed: list[int], other_net: Any, recipe: dict[str, Any], preprocess: Preprocess
) -> None:
    maps_of(net, found)
    maps_of(other_net(copy.deepcopy(net)), found, changed(**recipe), preprocess)
    assert computed == [60, 3, 60, 3]


@pytest.mark.parametrize("recipe", [{"crop_min_area": 0.8}, {"flip": False}, {"train_px": 64}, {"augment": "none"}])
def test_other_crops_are_computed_the_photos_in_use_are_there(
    net: Net, found: Any, computed: list[int], recipe: dict[str, Any]
) -> None:
    maps_of(net, found)
    maps_of(net, found, changed(**recipe))
    assert computed == [60, 3, 60]


def test_values_too_great_for_float16_are_told(net: Net, found: Any) -> None:
    with torch.no_grad():
        net.blocks()[-5].get_parameter(  # the last frozen block's last norm
            [name for name, _ in net.blocks()[-5].named_parameters()][-1]
        ).add_(1e6)
    assert maps_of(net, found) is None


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"last_views": 0}, ""),
        ({"mode": "full"}, ""),
        ({"augment": "trivial"}, "augment is trivial"),
        ({"first_px": 32}, "crops of two sizes"),
        ({"last_px": 64}, "crops of two sizes"),
        ({"mixup_alpha": 0.1}, "mixup and CutMix blend photos"),
        ({"cutmix_alpha": 0.1}, "mixup and CutMix blend photos"),
        ({"last_blocks": 100}, "mobilenet_v3_small cannot be cut before its last 100 blocks"),
        ({"cache_mb": 0}, "maps need 1 MB, and cache_mb is 0"),
    ],
)
def test_what_maps_cannot_give_is_said(net: Net, found: Any, recipe: dict[str, Any], why: str) -> None:
    parts, said = cut_for(net, found, changed(**recipe))
    assert parts is None
    assert why in said
    assert said.startswith("photos go through the whole network each epoch: ") == bool(why)


def test_several_processes_and_teachers_need_photos(net: Net, found: Any) -> None:
    assert "several processes" in cut_for(net, found, processes=2)[1]
    assert "a teacher looks at photos" in cut_for(net, found, teacher=object())[1]


# ---- whole runs ------------------------------------------------------------------------------------------------------
class Listens(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.counted: set[str] = set()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def count(self, what: str, done: int, total: int) -> None:
        self.counted.add(what)


@pytest.fixture(scope="module")
def given(weight_file: Path, quick: dict[str, Any]) -> dict[str, Any]:
    return {"net": "mobilenet_v3_small", "weights": str(weight_file), "mode": "last", **quick, "image_px": 64}


@pytest.fixture(scope="module")
def uninterrupted(tiny_photos: Path, given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDLENS_CACHE", str(folder / "cache"))
        return handlens.fit(tiny_photos, out=folder / "run", **given)


def figures(run: Run) -> list[str]:
    """The log without what time it took."""
    return [line.rsplit(",", 2)[0] for line in (run.folder / "log.csv").read_text().splitlines()]


def assert_same_run(one: Run, other: Run) -> None:
    assert figures(one) == figures(other)
    weights = "model.safetensors"
    assert (one.folder / weights).read_bytes() == (other.folder / weights).read_bytes()
    for name in ("validation", "test"):
        assert one.metrics[name] == other.metrics[name]


MAPS = "frozen blocks' maps of photos"


def test_a_run_uses_maps_and_says_so(tiny_photos: Path, given: dict[str, Any], tmp_path: Path) -> None:
    first, second = Listens(), Listens()
    run = handlens.fit(tiny_photos, out=tmp_path / "run", watcher=first, **given)
    assert MAPS in first.counted
    assert [note for note in first.notes if "the last 4 blocks are trained, the others see 2 crops of each" in note]
    assert run.metrics["validation"]["num_photos"] == 3
    again = handlens.fit(tiny_photos, out=tmp_path / "again", watcher=second, **given)
    assert MAPS not in second.counted  # all are in the cache
    assert_same_run(run, again)


@pytest.mark.parametrize(
    ("more", "why"),
    [({"last_views": 0}, ""), ({"cache_mb": 0}, "cache_mb is 0"), ({"augment": "trivial"}, "augment is trivial")],
)
def test_without_maps_a_run_goes_as_before(
    tiny_photos: Path, given: dict[str, Any], tmp_path: Path, more: dict[str, Any], why: str
) -> None:
    watcher = Listens()
    run = handlens.fit(tiny_photos, out=tmp_path / "run", watcher=watcher, **given, **more)
    assert MAPS not in watcher.counted
    assert bool([note for note in watcher.notes if "through the whole network each epoch" in note]) == bool(why)
    assert any(why in note for note in watcher.notes)
    assert len(figures(run)) == 3


def test_maps_too_great_for_float16_are_trained_on_photos(
    tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Listens()
    expected = handlens.fit(tiny_photos, out=tmp_path / "expected", **given, last_views=0)
    monkeypatch.setattr(last, "maps_of", lambda *_: None)
    run = handlens.fit(tiny_photos, out=tmp_path / "run", watcher=watcher, **given)
    assert [note for note in watcher.notes if "too great for float16" in note]
    assert figures(run) == figures(expected)


def test_a_disk_that_fills_while_caching_does_not_end_the_run(
    tiny_photos: Path, given: dict[str, Any], uninterrupted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    computed: list[int],
) -> None:  # fmt: skip
    replace = files.os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).parent.name == "features":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "another cache"))
    monkeypatch.setattr(files.os, "replace", full)
    run = handlens.fit(tiny_photos, out=tmp_path / "run", **given)
    assert computed == [60, 3]
    assert not list((tmp_path / "another cache" / "features").iterdir())
    assert_same_run(run, uninterrupted)


@pytest.mark.parametrize(("epoch", "step", "cached"), [(1, 2, True), (2, 1, False), (2, 4, True)])
def test_an_interrupted_run_goes_on_to_the_same_figures(
    tiny_photos: Path, given: dict[str, Any], uninterrupted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    epoch: int, step: int, cached: bool,
) -> None:  # fmt: skip
    class Stops(Watcher):
        def step(self, at: loop.Step) -> None:
            if (at.epoch, at.step) == (epoch, step):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        handlens.fit(tiny_photos, out=tmp_path / "run", watcher=Stops(), **given)
    if not cached:  # the maps are computed again
        monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "another cache"))
    assert_same_run(handlens.fit(out=tmp_path / "run", resume=True), uninterrupted)


def test_another_seed_gives_another_result(
    tiny_photos: Path, given: dict[str, Any], uninterrupted: Run, tmp_path: Path
) -> None:
    other = handlens.fit(tiny_photos, out=tmp_path / "run", seed=1, **given)
    assert figures(other) != figures(uninterrupted)
