"""`handlens explain`: pictures into a folder, numbers as a table or JSON, one sentence for what does not fit."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import handlens
from handlens import checkpoint, files, nets, photos
from handlens.preprocess import Preprocess

Explain = Callable[..., tuple[int, str, str]]
CONTRACT = Preprocess(image_px=32, resize_px=36)


@pytest.fixture
def explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Explain) -> Explain:
    monkeypatch.chdir(tmp_path)

    return functools.partial(command, "explain")


@pytest.fixture
def numbers(explain: Explain) -> Callable[..., Any]:
    def call(*arguments: object) -> Any:
        code, out, err = explain(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def a_run(folder: Path, name: str, **arguments: Any) -> Path:
    import torch

    torch.manual_seed(0)
    net = nets.create(name, 3, **arguments)
    classes = ("blue sky", "花朵", "🌿 leaf")
    checkpoint.save(
        folder, checkpoint.Checkpoint(net=net, name=name, arguments=arguments, classes=classes, preprocess=CONTRACT)
    )
    return folder


def photo(run: Path, number: int = 0) -> Path:
    return run / "花朵" / f"{number:02}.jpg"


def test_a_photo_gets_grad_cam(numbers: Callable[..., Any], tiny_run: Path, tiny_photos: Path) -> None:
    found = numbers(tiny_run, photo(tiny_photos), "--out", "why")
    assert found["net"] == "mobilenet_v2"
    (line,) = found["gradcam"]
    assert (line["answer"], line["class"]) == ("花朵", "花朵")
    assert line["class_probability"] == line["probability"] > 0.5
    assert len(line["focus"]) == 2
    assert line["picture"] == str(Path("why", "gradcam-00.png"))
    assert Image.open(line["picture"]).size == (2 * 480 + 8, 400)


def test_the_pictures_path_is_whole_on_a_narrow_terminal(
    explain: Explain, tiny_run: Path, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown := tmp_path / ("a-long-name-" * 4 + ".jpg")).write_bytes(photo(tiny_photos).read_bytes())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    out = explain(tiny_run, shown)[1]
    assert str(Path("explained", f"gradcam-{shown.stem}.png")) in out


def test_the_probability_is_calibrated_as_everywhere(
    numbers: Callable[..., Any], tiny_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    found = checkpoint.load(tiny_run)
    calibrated = dataclasses.replace(found, calibration={"temperature": 2.5})
    checkpoint.save(tmp_path / "run", calibrated)
    (guess, *_) = handlens.load(tmp_path / "run").predict(photo(tiny_photos))
    (line,) = numbers(tmp_path / "run", photo(tiny_photos))["gradcam"]
    assert (line["answer"], line["probability"]) == (guess.name, pytest.approx(guess.probability, abs=1e-5))
    (plain,) = numbers(tiny_run, photo(tiny_photos))["gradcam"]
    assert plain["probability"] > line["probability"] + 0.01


def test_what_predict_calls_unknown_is_unknown(
    explain: Explain, numbers: Callable[..., Any], tiny_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    saved = checkpoint.load(tiny_run)
    saved.rejection = {"kind": "max-softmax", "threshold": 1.5}
    checkpoint.save(tmp_path / "run", saved)
    (line,) = numbers(tmp_path / "run", photo(tiny_photos))["gradcam"]
    assert (line["answer"], line["unknown"]) == ("花朵", True)
    assert line["score"] == pytest.approx(line["probability"])
    code, out, err = explain(tmp_path / "run", photo(tiny_photos))
    assert code == 0 and "unknown, nearest 花朵" in out
    assert "uncalibrated" in err
    (plain,) = numbers(tiny_run, photo(tiny_photos))["gradcam"]
    assert (plain["unknown"], plain["score"]) == (False, None)


def test_a_large_photo_is_looked_at_whole_and_shown_small(tiny_run: Path, tmp_path: Path) -> None:
    from handlens.explain import saliency

    saved = checkpoint.load(tiny_run)
    look = saliency.explainer(saved.net, saved.preprocess, longest_px=480)
    large = np.random.default_rng(0).integers(0, 256, (900, 1500, 3), np.uint8)
    assert look(large, 0).shape == (288, 480)
    whole = saliency.explainer(saved.net, saved.preprocess)(large, 0)
    near = whole[np.ix_(np.arange(288) * 900 // 288 + 1, np.arange(480) * 1500 // 480 + 1)]
    np.testing.assert_allclose(look(large, 0), near, atol=0.02)
    assert look(large[:60, :70], 0).shape == (60, 70)


def test_a_class_of_ones_own(numbers: Callable[..., Any], tiny_run: Path, tiny_photos: Path) -> None:
    (line,) = numbers(tiny_run, photo(tiny_photos), "--class", "blue sky")["gradcam"]
    assert (line["answer"], line["class"]) == ("花朵", "blue sky")
    assert line["picture"] == str(Path("explained", "gradcam-blue sky-00.png"))
    assert line["class_probability"] < line["probability"]


def test_the_map_is_upright(numbers: Callable[..., Any], tmp_path: Path) -> None:
    """The same picture stored upright and turned, with the camera's word on how it was held."""
    run = a_run(tmp_path / "run", "mobilenet_v2", width=0.35)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    pixels[5:15, 40:55] = (255, 0, 0)
    upright = Image.fromarray(pixels)
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    first, second = numbers(run, "upright.png", "turned.png", "--layer", "2")["gradcam"]
    assert first["focus"] == pytest.approx(second["focus"])
    shown = [np.asarray(Image.open(line["picture"])) for line in (first, second)]
    np.testing.assert_array_equal(*shown)
    assert first["focus"] != pytest.approx([0.5, 0.5], abs=1e-3)


def test_its_pictures_are_no_photos_and_go_to_none(
    explain: Explain, tiny_run: Path, tiny_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_photos, "mine")
    before = photos.scan("mine")
    monkeypatch.chdir("mine")
    for out in ((), ("--out", "花朵/why"), ()):  # by default, in a class, and once more
        assert explain(tiny_run, "花朵/00.jpg", *out)[0] == 0
    assert photos.scan(".").paths == before.paths and photos.scan(".").classes == before.classes
    monkeypatch.setattr("handlens.cli.explain.load", lambda *_: pytest.fail("loaded before it was told"))
    for folder in ("花朵", "."):
        code, out, err = explain(tiny_run, "--out", folder)
        assert (code, out) == (2, "")
        assert f"{folder} has photos in it, such as " in err and "choose another --out, a new folder" in err
    assert not Path("花朵", files.MADE).exists()


def test_photos_of_the_same_name_and_broken_ones(explain: Explain, tiny_run: Path, tiny_photos: Path) -> None:
    Path("broken.jpg").write_bytes(b"no photo")
    code, out, err = explain(tiny_run, tiny_photos / "花朵/00.jpg", "broken.jpg", tiny_photos / "blue sky/00.jpg")
    assert code == 0
    assert "left out: broken.jpg" in err
    assert {path.name for path in Path("explained").glob("[!.]*")} == {"gradcam-00.png", "gradcam-00-2.png"}
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["picture", "photo", "answer", "explained"]
    assert "花朵" in lines[1] and "blue sky" in lines[2]
    code, out, _ = explain(tiny_run, "broken.jpg")
    assert (code, out) == (2, "")


def test_without_photos_what_the_weights_show(explain: Explain, numbers: Callable[..., Any], tiny_run: Path) -> None:
    found = numbers(tiny_run)
    assert set(found) == {"net", "kernels", "dead_kernels"}
    assert found["kernels"]["layer"] == "features.0.0"
    assert found["kernels"]["shape"][1:] == [3, 3, 3]
    assert found["dead_kernels"]["num_kernels"] == sum(line["num_kernels"] for line in found["dead_kernels"]["layers"])
    assert found["dead_kernels"]["num_dead"] == 0
    for key in ("kernels", "dead_kernels"):
        assert Image.open(found[key]["picture"]).format == "PNG"
    code, out, _ = explain(tiny_run, "--what", "dead-kernels")
    assert code == 0
    assert out.splitlines()[0].split() == ["layer", "kernels", "dead", "silent"]
    assert "below 0.01 of the layer's median" in out


def test_feature_maps(numbers: Callable[..., Any], tiny_run: Path, tiny_photos: Path) -> None:
    (found,) = numbers(tiny_run, photo(tiny_photos), "--what", "feature-maps")["feature_maps"]
    assert [line["shape"][1:] for line in found["layers"]] == [[16, 16], [8, 8], [4, 4], [2, 2], [1, 1]]
    (one,) = numbers(tiny_run, photo(tiny_photos), "--what", "feature-maps", "--layer", "features.3")["feature_maps"]
    assert one["layers"] == [found["layers"][1]]
    assert one["picture"] == str(Path("explained", "feature-maps-features.3-00.png"))
    assert Image.open(one["picture"]).format == "PNG"


@pytest.fixture
def v3_run(tmp_path: Path, tiny_photos: Path) -> Path:
    """A network with gates, as training leaves it."""
    from handlens.train import Recipe

    run = a_run(tmp_path / "v3", "mobilenet_v3_small", width=0.35)
    saved = checkpoint.load(run)
    saved.recipe = dataclasses.asdict(Recipe(net="mobilenet_v3_small", photos=str(tiny_photos)))
    checkpoint.save(run, saved)
    found = photos.scan(tiny_photos)
    sha256 = photos.examine(found).sha256
    photos.write_split(run / "split.json", photos.split(found, sha256, fractions=(0.5, 0.1, 0.4)), sha256, 0)
    return run


def test_gates(explain: Explain, numbers: Callable[..., Any], v3_run: Path, tiny_photos: Path) -> None:
    found = numbers(v3_run, "--what", "gates")["gates"]
    assert "own test split" in found["split"]
    assert 9 <= found["num_photos"] < 20
    assert found["classes"] == ["blue sky", "花朵", "🌿 leaf"]
    assert len(found["layers"]) == 9
    assert all(0 <= line["layer_share"] <= 1 for line in found["layers"])
    assert Image.open(found["picture"]).format == "PNG"
    named = numbers(v3_run, tiny_photos, "--what", "gates", "--layer", found["layers"][2]["layer"])["gates"]
    assert named["num_photos"] == 36
    assert named["layers"][2]["chance_share"] == pytest.approx(2 / 35)
    code, out, _ = explain(v3_run, "--what", "gates")
    assert code == 0
    assert out.splitlines()[1].split()[0] == "layer"
    assert "by chance" in out


def test_a_vision_transformer(numbers: Callable[..., Any], tmp_path: Path, tiny_photos: Path) -> None:
    run = a_run(tmp_path / "vit", "vit_ti_16", image_px=32)
    (line,) = numbers(run, photo(tiny_photos))["rollout"]
    assert "class" not in line
    assert Image.open(line["picture"]).format == "PNG"
    found = numbers(run)
    assert set(found) == {"net", "kernels", "positions"}
    assert found["positions"]["side"] == 2
    (maps,) = numbers(run, photo(tiny_photos), "--what", "feature-maps")["feature_maps"]
    assert maps["layers"][0]["shape"] == [192, 2, 2]


def test_a_nets_name_and_a_weight_file(
    explain: Explain, numbers: Callable[..., Any], tmp_path: Path, tiny_photos: Path
) -> None:
    import safetensors.torch

    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(nets.create("mobilenet_v2", 12, width=0.35).state_dict(), path)
    (line,) = numbers("mobilenet_v2", photo(tiny_photos), "--weights", path)["gradcam"]
    assert len(line["answer"]) == 2
    _, _, err = explain("mobilenet_v2", "--weights", path, "--what", "kernels")
    assert "names no classes" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nope"], "there is no run folder nope"),
        (["RUN", "PHOTO", "--layer", "features.99"], "has no layer 'features.99'; did you mean features.9"),
        (["RUN", "PHOTO", "--layer", "classifier.1"], "no maps; name a convolution or a stage"),
        (["RUN", "PHOTO", "--what", "feature-maps", "--layer", "8"], "has no stage 8; its stages are 1 to 5"),
        (["RUN", "PHOTO", "--what", "rollout"], "needs self-attention, which MobileNetV2 has none of"),
        (["RUN", "--what", "gates"], "has no squeeze-and-excite layers"),
        (["RUN", "--what", "positions"], "has no position embeddings"),
        (["VIT", "PHOTO", "--what", "gradcam"], "Grad-CAM needs convolutional stages"),
        (["VIT", "--what", "dead-kernels"], "has no depthwise convolutions"),
        (["VIT", "PHOTO", "--layer", "2"], "rollout looks at all layers together; leave out --layer"),
        (["VIT", "PHOTO", "--class", "花朵"], "rollout is the same for every class; leave out --class"),
        (["RUN", "PHOTO", "--class", "blue sk"], "knows no class 'blue sk'; its classes are such as blue sky"),
        (["RUN", "--what", "gradcam"], "--what gradcam looks at photos, and none is named"),
        (["RUN", "PHOTO", "--what", "kernels"], "--what kernels looks at no photos"),
        (["RUN", "--layer", "features.3"], "--layer is for gradcam, feature-maps and gates"),
        (["RUN", "--class", "花朵"], "--class is for gradcam of photos"),
        (["V3", "PHOTO", "PHOTO", "--what", "gates"], "one source of photos with labels"),
        (
            ["V3", "--what", "gates", "--layer", "features.1"],
            "is no squeeze-and-excite layer; they are features.1.block",
        ),
        (["V3", "nowhere", "--what", "gates"], "there is no folder nowhere"),
        (["RUN", "PHOTO", "--out", "PHOTO/x"], "is no folder; choose another place"),
        (["V3", "--what", "gates", "--out", "PHOTO/x"], "is no folder; choose another place"),
    ],
)
def test_bad_input_is_one_sentence(
    explain: Explain,
    tiny_run: Path,
    tiny_photos: Path,
    v3_run: Path,
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
) -> None:
    places = {"RUN": tiny_run, "PHOTO": photo(tiny_photos), "V3": v3_run, "PHOTO/x": photo(tiny_photos) / "x"}
    if "VIT" in arguments:
        places["VIT"] = a_run(tmp_path / "vit", "vit_ti_32", image_px=32)
    code, out, err = explain(*(places.get(argument, argument) for argument in arguments), "--json")
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_a_suggested_command_can_be_typed(explain: Explain, tmp_path: Path) -> None:
    _, _, err = explain(tmp_path / "my run", "--what", "gradcam")
    assert err.endswith(f"handlens explain '{tmp_path / 'my run'}' PHOTO\n")


def test_an_unknown_what_is_named(explain: Explain, tiny_run: Path) -> None:
    code, _, err = explain(tiny_run, "--what", "grad-cam")
    assert code == 2
    assert "gradcam" in err


def test_a_damaged_photo_among_labelled_ones(
    numbers: Callable[..., Any], v3_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_photos, tmp_path / "photos")
    (tmp_path / "photos" / "花朵" / "00.jpg").write_bytes(b"no photo")
    assert numbers(v3_run, tmp_path / "photos", "--what", "gates")["gates"]["num_photos"] == 35
