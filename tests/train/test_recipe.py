"""A recipe: written and read back, every field checked, a good one chosen for the photos at hand."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from handlens import nets
from handlens.errors import HandlensError
from handlens.train import Recipe
from handlens.train.recipe import FEW_A_CLASS, choose, read_toml, unused

FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}

UNUSUAL = {
    "photos": 'C:\\photos "of" 花朵 🌼\n',
    "continue_run": "runs/a b",
    "add": "more",
    "prune": 0.3,
    "teacher": "runs/big",
    "unknown": "other-photos",
    "net": "mobilenet_v2",
    "mode": "head",
    "weights": "none",
    "width": 0.35,
    "image_px": 160,
    "train_px": 128,
    "first_px": 96,
    "last_px": 160,
    "normalisation": "l2",
    "seed": 7,
    "epochs": 3,
    "batch_size": 5,
    "optimizer": "sgd",
    "lr": 1e-7,
    "backbone_lr_ratio": 0.5,
    "warmup_epochs": 0.25,
    "weight_decay": 0.0,
    "last_blocks": 2,
    "last_views": 3,
    "head_hidden": 12,
    "head_views": 0,
    "augment": "none",
    "crop_min_area": 1,
    "flip": False,
    "mixup_alpha": 0.1,
    "cutmix_alpha": 1.0,
    "label_smoothing": 0.0,
    "distil_weight": 0.5,
    "distil_temperature": 4.0,
    "dropout": 0.5,
    "stochastic_depth": 0.1,
    "ema_decay": 0.999,
    "bn_momentum": 0.01,
    "freeze_bn": True,
    "balance": "sampling",
    "patience_epochs": 4,
    "precision": "bf16-mixed",
    "cache_mb": 0,
}


def test_the_table_of_unusual_values_has_every_field() -> None:
    assert UNUSUAL.keys() == FIELDS.keys()
    assert not [name for name, value in UNUSUAL.items() if value == FIELDS[name].default]


@pytest.mark.parametrize(
    "values", [{}, UNUSUAL, {"photos": 'a\x7f\x01"\\\t花'}], ids=["defaults", "unusual", "odd text"]
)
def test_toml_gives_back_what_was_written(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    Recipe(**values).write(path)
    assert Recipe.read(path) == Recipe(**values)
    assert tomllib.loads(path.read_text(encoding="utf-8")).keys() == FIELDS.keys()


def test_a_mark_that_an_editor_puts_first_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("lr = 1\n", encoding="utf-8-sig")
    assert read_toml(path) == {"lr": 1}


def test_fields_left_out_of_a_file_keep_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('lr = 1\nmode = "last"\n')  # an integer where a decimal is meant
    assert read_toml(path) == {"lr": 1, "mode": "last"}
    assert Recipe.read(path) == Recipe(lr=1, mode="last")


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("width", [0, -1, 16.1], "above 0 and at most 16"),
        ("image_px", [0, 4097], "1 to 4096"),
        ("train_px", [-1, 4097], "0 to 4096"),
        ("first_px", [-1, 4097], "0 to 4096"),
        ("last_px", [-1, 4097], "0 to 4096"),
        ("epochs", [0, 100_001], "1 to 100000"),
        ("batch_size", [1, 65_537], "2 to 65536"),
        ("lr", [0, 101], "above 0 and at most 100"),
        ("backbone_lr_ratio", [-0.1, 101], "0 to 100"),
        ("weight_decay", [-0.1, 101], "0 to 100"),
        ("last_blocks", [0, 10_001], "1 to 10000"),
        ("last_views", [-1, 1001], "0 to 1000"),
        ("head_hidden", [-1, 65_537], "0 to 65536"),
        ("head_views", [-1, 101], "0 to 100"),
        ("crop_min_area", [0.001, 1.1], "0.01 to 1"),
        ("mixup_alpha", [-0.1, 101], "0 to 100"),
        ("cutmix_alpha", [-0.1, 101], "0 to 100"),
        ("label_smoothing", [-0.1, 0.91], "0 to 0.9"),
        ("dropout", [-0.1, 0.96], "0 to 0.95"),
        ("stochastic_depth", [-0.1, 0.96], "0 to 0.95"),
        ("ema_decay", [-0.1, 1.0], "0 to 0.999999"),
        ("bn_momentum", [0, 1.1], "above 0 and at most 1"),
        ("patience_epochs", [-1, 100_001], "0 to 100000"),
        ("cache_mb", [-1, 10_000_001], "0 to 10000000"),
        ("seed", [-1], "0 to"),
        ("lr", [float("nan"), float("inf")], "above 0 and at most 100"),
        ("mode", ["fast", ""], "'full', 'last', 'head' or 'scratch'"),
        ("optimizer", ["adam"], "'adamw' or 'sgd'"),
        ("augment", ["heavy"], "'none', 'light' or 'trivial'"),
        ("balance", ["yes"], "'none', 'weights' or 'sampling'"),
        ("precision", ["64-true"], "'auto', '32-true', 'bf16-mixed' or '16-mixed'"),
        ("epochs", ["3", 2.5, True, None], "expected int"),
        ("lr", ["fast", True, None], "expected float"),
        ("flip", [1, "yes"], "expected bool"),
        ("photos", [3, Path("photos")], "expected str"),
        ("mode", [1, ["full"]], "expected"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(name: str, values: list[Any], expected: str) -> None:
    for value in values:
        for make in (lambda value=value: Recipe(**{name: value}), lambda value=value: choose([50, 50], {name: value})):
            with pytest.raises(HandlensError) as caught:
                make()
            assert caught.value.message.startswith(f"{name} is {value!r}, expected"), caught.value.message
            assert expected.replace("'", "") in caught.value.message.replace("'", "")
            assert "\n" not in str(caught.value)


def test_the_warm_up_is_no_longer_than_the_epochs_that_were_chosen() -> None:
    for make, most in (
        (lambda value: Recipe(warmup_epochs=value), 10),
        (lambda value: choose([9, 9], {"warmup_epochs": value}), 40),
    ):
        assert make(most).warmup_epochs == most
        for value in (-1, most + 0.5):
            with pytest.raises(HandlensError) as caught:
                make(value)
            assert caught.value.message == f"warmup_epochs is {value}, expected 0 to {most}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"epochs = ", "is not TOML"),
        (b"\xff", "is not TOML"),
        (b"epoch = 3", "sets 'epoch', which a recipe does not have"),
        (b'epochs = "3"', "sets epochs to '3', expected int"),
        (b"epochs = 3.5", "sets epochs to 3.5, expected int"),
        (b"epochs = true", "sets epochs to True, expected int"),
        (b"flip = 1", "sets flip to 1, expected bool"),
        (b"lr = true", "sets lr to True, expected float"),
        (b"lr = [1]", "sets lr to [1], expected float"),
        (b"photos = 3", "sets photos to 3, expected str"),
        (b"mode = 3", "sets mode to 3, expected str"),
        (b'mode = "fast"', "mode is 'fast', expected full, last, head or scratch"),
        (b"epochs = 0", "epochs is 0, expected 1 to 100000"),
        (b"[table]", "sets 'table', which a recipe does not have"),
    ],
)
def test_a_bad_file_is_named(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(HandlensError) as caught:
        Recipe.read(path)
    assert sentence in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(HandlensError, match="cannot be read"):
            read_toml(path)


def test_few_photos_get_more_epochs_and_smaller_batches() -> None:
    few, many = choose([12] * 3, {}), choose([1000] * 5, {})
    assert (few.epochs, few.batch_size, few.freeze_bn) == (40, 9, True)
    assert (many.epochs, many.batch_size, many.freeze_bn) == (11, 32, False)
    assert few.ema_decay < many.ema_decay
    assert choose([3, 3], {}).batch_size == 4
    assert choose([500, 500], {}).epochs == 42


@pytest.mark.parametrize(
    ("counts", "given", "mode"),
    [
        ([5] * 5, {}, "last"),
        ([FEW_A_CLASS] * 5, {}, "last"),
        ([FEW_A_CLASS, FEW_A_CLASS + 1], {}, "full"),
        ([1, 2 * FEW_A_CLASS - 1], {}, "last"),  # on average
        ([500] * 5, {}, "full"),
        ([5] * 5, {"mode": "full"}, "full"),
        ([500] * 5, {"mode": "last"}, "last"),
        ([5] * 5, {"weights": "none"}, "full"),  # nothing below the last blocks that could stay as it is
    ],
)
def test_few_photos_a_class_train_the_last_blocks_only(counts: list[int], given: dict[str, Any], mode: str) -> None:
    recipe = choose(counts, given)
    assert recipe == choose(counts, {**given, "mode": mode})


@pytest.mark.parametrize(
    ("given", "image_px", "train_px"),
    [
        ({}, 224, 176),
        ({"mode": "head"}, 224, 0),
        ({"mode": "scratch", "image_px": 160}, 160, 128),
        ({"image_px": 128}, 128, 0),
        ({"net": "inception_v3"}, 299, 240),
        ({"net": "vit_s16"}, 224, 0),
        ({"train_px": 0}, 224, 0),
    ],
)
def test_the_networks_own_size_is_used_and_trained_on_smaller_crops(
    given: dict[str, Any], image_px: int, train_px: int
) -> None:
    if (name := given.get("net", "")).startswith("vit"):
        name = next(known for known in nets.names("vit"))
        given = {**given, "net": name}
        image_px = nets.entry(name).image_px
    recipe = choose([100, 100], given)
    assert (recipe.image_px, recipe.train_px) == (image_px, train_px)


def builder(name: str) -> object:
    """The function that makes a network, without what it is given for this one."""
    build = nets.entry(name).build
    return getattr(build, "func", build)


# The crops follow from the input's size alone: of networks of one builder with the same, a small one stands for all.
FROM_THE_LARGEST = sorted(nets.names(), key=lambda name: [int(n) for n in re.findall(r"\d+", name)], reverse=True)
ONE_OF_A_SIZE = {(builder(name), nets.entry(name).image_px): name for name in FROM_THE_LARGEST}
LARGE = re.compile("efficientnet_(b[3-7]|lite[34])")  # deep ones of a builder whose others are tried


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * bool(LARGE.match(n))) for n in ONE_OF_A_SIZE.values()]
)
def test_every_size_of_network_can_be_trained_on_the_crops_that_are_chosen(name: str) -> None:
    recipe = choose([500] * 5, {"net": name})
    net = nets.on_meta(name, num_classes=5).train()
    with torch.device("meta"):
        for px in {recipe.crop_px(epoch) for epoch in range(recipe.epochs)}:
            logits, _ = net.forward_train(torch.zeros(2, 3, px, px))
            assert logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("num_photos", "given", "first_px", "epochs"),
    [
        (5000, {}, 128, 11),
        (2348, {}, 128, 18),
        (1000, {}, 128, 42),
        (2348, {"first_px": 0}, 0, 13),
        (2348, {"first_px": 96}, 96, 18),
        (2348, {"epochs": 5}, 128, 5),
        (2348, {"train_px": 224}, 0, 13),
        (2348, {"train_px": 224, "first_px": 160}, 160, 13),
        (2348, {"teacher": "run"}, 0, 13),
        (2348, {"mode": "last"}, 0, 13),
        (2348, {"mode": "head"}, 0, 20),
        (2348, {"mode": "scratch"}, 0, 102),
        (2348, {"image_px": 160}, 96, 18),
        (2348, {"image_px": 128}, 0, 13),
        (2348, {"net": "inception_v3"}, 176, 18),
        (2348, {"net": "vit_b_16"}, 0, 13),
        (995, {}, 0, 30),
    ],
)
def test_full_runs_on_many_photos_begin_with_smaller_crops_and_have_more_epochs_in_their_time(
    num_photos: int, given: dict[str, Any], first_px: int, epochs: int
) -> None:
    recipe = choose([num_photos // 5] * 4 + [num_photos - num_photos // 5 * 4], given)
    assert (recipe.first_px, recipe.epochs) == (first_px, epochs)


@pytest.mark.parametrize(
    ("sizes", "epochs", "crops"),
    [
        ({}, 2, [224, 224]),
        ({"train_px": 176}, 2, [176, 176]),
        ({"train_px": 176, "first_px": 128}, 4, [128, 128, 176, 176]),
        ({"train_px": 176, "first_px": 128}, 5, [128, 128, 176, 176, 176]),
        ({"first_px": 112}, 2, [112, 224]),
        ({"first_px": 112}, 1, [224]),
        ({"train_px": 176, "last_px": 224}, 1, [224]),
        ({"train_px": 176, "last_px": 224}, 3, [176, 176, 224]),
        ({"train_px": 176, "last_px": 224}, 20, [176] * 15 + [224] * 5),
        ({"train_px": 176, "last_px": 224}, 21, [176] * 15 + [224] * 6),
        ({"train_px": 176, "last_px": 224, "mode": "scratch"}, 20, [176] * 18 + [224] * 2),
        ({"train_px": 176, "last_px": 224, "mode": "scratch"}, 21, [176] * 18 + [224] * 3),
        ({"train_px": 176, "first_px": 128, "last_px": 224}, 4, [128, 128, 176, 224]),
    ],
)
def test_crops_are_smaller_in_the_first_half_of_the_epochs_and_as_in_use_in_the_last_ones(
    sizes: dict[str, Any], epochs: int, crops: list[int]
) -> None:
    recipe = Recipe(epochs=epochs, warmup_epochs=0, **sizes)
    assert [recipe.crop_px(epoch) for epoch in range(epochs)] == crops
    for since in range(epochs + 1):
        unit = sizes.get("train_px", 224)
        assert recipe.work(since) == pytest.approx(sum((px / unit) ** 2 for px in crops[since:]))
    assert recipe.crops_px == sorted(set(crops))


@pytest.mark.parametrize(
    ("given", "last_px"),
    [
        ({}, 224),
        ({"image_px": 160}, 160),
        ({"image_px": 128}, 0),
        ({"train_px": 192}, 0),
        ({"teacher": "run"}, 0),
        ({"last_px": 0}, 0),
        ({"last_px": 192}, 192),
        ({"net": "vit_b_16"}, 0),
        ({"mode": "full"}, 224),
        ({"mode": "full", "first_px": 0}, 224),
        ({"mode": "full", "teacher": "run"}, 0),
        ({"mode": "last"}, 0),
    ],
)
def test_runs_end_with_crops_as_in_use(given: dict[str, Any], last_px: int) -> None:
    assert choose([470] * 5, {"mode": "scratch", **given}).last_px == last_px


def test_few_photos_are_not_shown_crops_as_in_use_in_the_end() -> None:
    assert [choose([count] * 5, {"mode": "full"}).last_px for count in (199, 200)] == [0, 224]


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(HandlensError, match="mobilenet_v9"):
        choose([9, 9], {"net": "mobilenet_v9"})


def test_the_average_spans_a_tenth_of_the_run() -> None:
    recipe = choose([80] * 4, {"epochs": 5})
    steps = 5 * (320 // 32)
    assert recipe.ema_decay == pytest.approx(1 - 10 / steps)
    assert choose([1000] * 10, {"mode": "scratch"}).ema_decay == 0.998
    assert choose([2, 2], {"epochs": 1}).ema_decay == 0


def test_the_warm_up_is_a_fifth_of_a_short_run() -> None:
    assert choose([50] * 4, {"mode": "scratch"}).warmup_epochs == 5
    assert choose([50] * 4, {"mode": "scratch", "epochs": 3}).warmup_epochs == pytest.approx(0.6)
    assert choose([50] * 4, {"epochs": 1}).warmup_epochs == pytest.approx(0.2)


@pytest.mark.parametrize("mode", ["full", "last", "head", "scratch"])
@pytest.mark.parametrize("counts", [[1, 1], [10, 12, 9], [700] * 5, [40] * 102, [200_000] * 10])
def test_every_mode_and_number_of_photos_has_a_recipe(mode: str, counts: list[int]) -> None:
    recipe = choose(counts, {"mode": mode})
    assert recipe.mode == mode
    assert recipe.batch_size >= 2
    assert recipe.warmup_epochs <= recipe.epochs / 5 + 0.01
    assert (recipe.backbone_lr_ratio == 1.0) == (mode == "scratch")
    assert recipe.freeze_bn == (mode in ("full", "last") and sum(counts) < 200)


@pytest.mark.parametrize(
    ("counts", "balance"), [([30, 10], "none"), ([31, 10], "weights"), ([5, 50, 5], "weights"), ([4, 4], "none")]
)
def test_unequal_classes_get_a_weighted_loss(counts: list[int], balance: str) -> None:
    assert choose(counts, {}).balance == balance


def test_what_is_given_is_kept() -> None:
    for mode in ("full", "last", "head", "scratch"):
        given = {**UNUSUAL, "mode": mode}
        assert choose([100, 5], given) == Recipe(**given)


def test_a_recipe_cannot_be_written_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HandlensError, match="in the way"):
        Recipe().write(os.path.join(tmp_path, "file", "recipe.toml"))


def test_a_head_on_many_photos_has_one_view_of_each_and_fewer_epochs() -> None:
    few, many = choose([50, 50], {"mode": "head"}), choose([900, 900], {"mode": "head"})
    assert (few.head_views, few.epochs, few.lr) == (2, 40, 0.001)
    assert (many.head_views, many.epochs, many.lr) == (0, 20, 0.002)
    assert choose([900, 900], {"mode": "head", "epochs": 40}).lr == 0.001  # the higher rate is for fewer epochs
    assert choose([900, 900], {"mode": "head", "lr": 0.01}).epochs == 20


def test_no_augmentation_is_none_in_a_head_too() -> None:
    assert choose([50, 50], {"mode": "head"}).head_views == 2
    assert choose([50, 50], {"mode": "head", "augment": "none"}).head_views == 0
    assert choose([900, 900], {"mode": "head", "augment": "none"}).head_views == 0
    assert choose([50, 50], {"mode": "last", "augment": "none"}).last_views == 1


def test_what_a_head_does_not_use_is_named() -> None:
    asked = {"mode": "head", "augment": "trivial", "mixup_alpha": 0.2, "train_px": 176, "lr": 0.01}
    assert unused([50, 50], asked) == ["train_px", "mixup_alpha", "TrivialAugment"]
    assert unused([50, 50], {**asked, "mode": "full"}) == []


@pytest.mark.parametrize(
    ("mode", "left"),
    [
        ("full", ["last_blocks", "last_views", "head_views"]),
        ("last", ["head_views"]),
        ("head", ["last_blocks", "last_views", "cache_mb"]),
        ("scratch", ["last_blocks", "last_views", "head_views"]),
    ],
)
@pytest.mark.parametrize("counts", [[5] * 5, [500] * 5])
def test_what_a_mode_does_not_use_is_named(mode: str, left: list[str], counts: list[int]) -> None:
    asked: dict[str, Any] = {"last_blocks": 2, "last_views": 3, "head_views": 5, "cache_mb": 77}
    assert unused(counts, {**asked, "mode": mode}) == left
    if mode == ("full" if sum(counts) > 1000 else "last"):
        assert unused(counts, asked) == left  # chosen by the number of photos
    taught = {"mode": mode, "distil_weight": 0.5, "distil_temperature": 3.0}
    assert unused(counts, taught) == ["distil_weight without a teacher", "distil_temperature without a teacher"]
    assert unused(counts, {**taught, "teacher": "run"}) == []
    for own in ({}, {"augment": "none"}):
        assert unused(counts, vars(choose(counts, {"mode": mode, **own}))) == []  # a run's own recipe
