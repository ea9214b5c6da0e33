"""A run's two files: what is saved comes back, and what is no checkpoint is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from handlens import checkpoint, nets
from handlens.checkpoint import Checkpoint
from handlens.errors import HandlensError
from handlens.nets.familiar import Familiar
from handlens.preprocess import Preprocess

CLASSES = ("daisy", "花朵", "🌼")


def make(arguments: dict[str, Any] | None = None, **changes: Any) -> Checkpoint:
    torch.manual_seed(0)
    arguments = {"width": 0.1, "padding": "tensorflow"} if arguments is None else arguments
    whole = Checkpoint(
        net=checkpoint.build("mobilenet_v2", len(CLASSES), arguments).eval(),
        name="mobilenet_v2",
        arguments=arguments,
        classes=CLASSES,
        preprocess=Preprocess(image_px=32, resize_px=36, mean=(0.5, 0.5, 0.5)),
        recipe={"epochs": 3},
        metrics={"top1": 0.5},
    )
    return dataclasses.replace(whole, **changes)


def logits(net: nets.Net) -> torch.Tensor:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return net.eval()(images)


@pytest.mark.parametrize("hidden", [0, 16])
def test_round_trip(tmp_path: Path, hidden: int) -> None:
    saved = make({"width": 0.1, "padding": "tensorflow"} | ({"head_hidden": hidden} if hidden else {}))
    checkpoint.save(tmp_path / "run", saved)
    loaded = checkpoint.load(tmp_path / "run")
    assert torch.equal(logits(loaded.net), logits(saved.net))
    assert not loaded.net.training
    for name in ("name", "arguments", "classes", "preprocess", "recipe", "metrics"):
        assert getattr(loaded, name) == getattr(saved, name), name
    assert sum(isinstance(module, torch.nn.Linear) for module in loaded.net.classifier) == 1 + bool(hidden)


def test_channels_last_weights_are_saved_as_they_are(tmp_path: Path) -> None:
    saved = make()
    before = logits(saved.net)
    saved.net.to(memory_format=torch.channels_last)
    checkpoint.save(tmp_path, saved)
    assert torch.allclose(logits(checkpoint.load(tmp_path).net), before, atol=1e-6)


def test_float16_is_half_as_large_and_read_as_float32(tmp_path: Path) -> None:
    saved = make()
    checkpoint.save(tmp_path / "32", saved)
    checkpoint.save(tmp_path / "16", saved, dtype=torch.float16)
    sizes = [(tmp_path / bits / "model.safetensors").stat().st_size for bits in ("32", "16")]
    assert sizes[1] < 0.7 * sizes[0]
    loaded = checkpoint.load(tmp_path / "16")
    assert {parameter.dtype for parameter in loaded.net.parameters()} == {torch.float32}
    assert torch.allclose(logits(loaded.net), logits(saved.net), atol=1e-2)


def test_classes_must_be_as_many_as_logits(tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match="2 classes were given for a net with 3 logits"):
        checkpoint.save(tmp_path / "run", make(classes=("a", "b")))
    assert not (tmp_path / "run").exists()


def changed(**members: Any) -> Callable[[Path], None]:
    """Set members of handlens.json; None removes one."""

    def change(run: Path) -> None:
        facts = json.loads((run / "handlens.json").read_text())
        facts = {key: value for key, value in (facts | members).items() if value is not None}
        (run / "handlens.json").write_text(json.dumps(facts))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Change the stored tensors, and the hash with them."""

    def change_both(run: Path) -> None:
        tensors = safetensors.torch.load_file(run / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, run / "model.safetensors")
        changed(weights_sha256=checkpoint.files.sha256_of(run / "model.safetensors"))(run)

    return change_both


def not_safetensors(run: Path) -> None:
    (run / "model.safetensors").write_bytes(b"\xff" * 100)
    changed(weights_sha256=checkpoint.files.sha256_of(run / "model.safetensors"))(run)


def truncated(run: Path) -> None:
    data = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (changed(format_version=2), "format 2, this handlens reads format 1"),
        (changed(format_version=None), "format None"),
        *(
            (changed(**{member: None}), f"no proper '{member}'")
            for member in checkpoint._MEMBERS
            if "version" not in member
        ),
        (changed(classes=[1, 2, 3]), "no proper 'classes'"),
        (changed(classes=[]), "no proper 'classes'"),
        (changed(classes=["a", "b", "a"]), "names a class twice"),
        (changed(classes=["a", "b"]), "names 2 classes, but its head gives 3 logits"),
        (changed(net="mobilenet_v9"), "there is no net named 'mobilenet_v9'"),
        (changed(arguments={"width": 0.2}), "does not fit the net"),
        (changed(arguments={"depth": 1}), "takes no 'depth'"),
        (changed(arguments={"num_classes": 7}), "mobilenet_v2 cannot be built with {'num_classes': 7}"),
        (changed(arguments={"head_hidden": "x"}), "cannot be built with"),
        (changed(arguments={"head_hidden": -4}), "cannot be built with"),
        (changed(arguments={"bn_eps": "x"}), "bn_eps of mobilenet_v2 is 'x', expected float"),
        (changed(arguments={"dropout": True}), "dropout of mobilenet_v2 is True, expected float"),
        (changed(arguments={"expanded": 3}), "expanded of mobilenet_v2 is 3, expected tuple"),
        (changed(preprocess={"image_px": 3}), "a pixel contract has the fields"),
        (weights(lambda tensors: tensors.popitem()), "absent"),
        (weights(lambda tensors: tensors.update(more=torch.zeros(1))), "more is \\(1,\\), expected absent"),
        (truncated, "SHA-256 differs"),
        (not_safetensors, "is no safetensors file"),
        (lambda run: (run / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda run: (run / "handlens.json").unlink(), "it has no handlens.json"),
        (lambda run: (run / "handlens.json").write_text("{"), "is not JSON"),
        (lambda run: (run / "handlens.json").write_text("[1]"), "expected a JSON object"),
    ],
)
def test_damage_is_refused_in_a_sentence(tmp_path: Path, damage: Callable[[Path], None], sentence: str) -> None:
    checkpoint.save(tmp_path, make())
    damage(tmp_path)
    with pytest.raises(HandlensError, match=sentence):
        checkpoint.load(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match="there is no run folder"):
        checkpoint.load(tmp_path / "nope")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "garden.jpg",
            "is neither a run's folder nor a bundle; a run comes before photos: name the run first",
        ),
        ("b.zip", "is a file, no run folder; name the run it was made from"),
    ],
)
def test_a_file_in_place_of_a_run(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(HandlensError, match=sentence):
        checkpoint.load(tmp_path / name)


def test_what_is_familiar_comes_back_or_is_refused(tmp_path: Path) -> None:
    saved = make()
    saved.net.familiar = Familiar(depth=1, centres=torch.rand(4, 1280), slope=2.0, offset=-1.0)
    checkpoint.save(tmp_path, saved)
    loaded = checkpoint.load(tmp_path).net.familiar
    assert loaded is not None and loaded.to_dict() == saved.net.familiar.to_dict()
    assert torch.equal(loaded.centres, saved.net.familiar.centres)
    facts = json.loads((tmp_path / "handlens.json").read_text("utf-8"))
    for change in ({"depth": 7}, {"slope": "2"}, {"more": 1}):
        damaged = {**facts, "familiar": {**facts["familiar"], **change}}
        (tmp_path / "handlens.json").write_text(json.dumps(damaged), "utf-8")
        with pytest.raises(HandlensError, match="does not fit the net of its run"):
            checkpoint.load(tmp_path)
    (tmp_path / "handlens.json").write_text(json.dumps({**facts, "familiar": 3}), "utf-8")
    with pytest.raises(HandlensError, match="no proper 'familiar'"):
        checkpoint.load(tmp_path)
    (tmp_path / "handlens.json").write_text(json.dumps(facts), "utf-8")
    (tmp_path / "familiar.safetensors").unlink()
    with pytest.raises(HandlensError, match=r"has no familiar\.safetensors"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("metrics", [{"top1": float("nan")}, {"top1": Path("x")}])
def test_what_is_there_stays_whole_when_what_is_new_cannot_be_written(tmp_path: Path, metrics: dict[str, Any]) -> None:
    checkpoint.save(tmp_path / "run", make({"width": 0.1}))
    with pytest.raises(HandlensError, match="cannot be written as JSON"):
        checkpoint.save(tmp_path / "run", make({"width": 0.1}, metrics=metrics))
    assert checkpoint.load(tmp_path / "run").metrics == {"top1": 0.5}
