"""Bundles on their runtimes: the same pixels, the answers of a reference in numpy, and no torch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import handlens
from handlens import bundle, run
from handlens.bundle import Golden
from handlens.errors import HandlensError, NotHereError, PhotoError
from handlens.run import bundles

RUNTIMES = ("onnx", "litert", "openvino", pytest.param("executorch", marks=pytest.mark.slow))  # making it takes 10 s
PACKAGES = {
    "onnx": "onnxruntime",
    "litert": "ai_edge_litert.interpreter",
    "executorch": "executorch.runtime",
    "openvino": "openvino",
}


@pytest.fixture(scope="module")
def photos(tiny: ModuleType) -> np.ndarray:
    """Twenty, which is more than the ExecuTorch file takes at once."""
    pixels = np.random.default_rng(0).normal(tiny.COLOURS[np.arange(20) % 3][:, None, None], 90, (20, 32, 32, 3))
    images: np.ndarray = np.clip(pixels, 0, 255).astype(np.uint8)
    images.flags.writeable = False  # as Pillow gives them
    return images


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("threads", [0, 1, 2])
def test_answers_are_those_of_numpy(tiny: ModuleType, photos: np.ndarray, runtime: str, threads: int) -> None:
    infer = bundles.runtime_of(runtime).start(tiny.make(runtime), threads)[0]
    expected = tiny.answer(photos)
    earlier = infer(photos[:5])
    kept = [rows.copy() for rows in earlier]
    for count in (20, 1, 16, 3):  # in an order that would show what is left of the call before
        for rows, wanted in zip(infer(photos[:count]), expected, strict=True):
            assert rows.dtype == np.float32
            np.testing.assert_allclose(rows, wanted[:count], atol=1e-5)
    for rows, before in zip(earlier, kept, strict=True):
        np.testing.assert_array_equal(rows, before)  # an answer stays when the next is computed
    mirrored = infer(photos[::-1, :, ::-1])[0]  # not in one piece in memory
    np.testing.assert_allclose(mirrored, expected[0][::-1], atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_facts_inside_the_file(tiny: ModuleType, runtime: str) -> None:
    start = bundles.runtime_of(runtime).start
    assert start(tiny.make(runtime))[1] == tiny.FACTS
    assert start(tiny.make(runtime, None))[1] is None


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_photos_of_another_size_get_no_answer(tiny: ModuleType, photos: np.ndarray, runtime: str) -> None:
    """Left to themselves, OpenVINO gives the answer before, and ExecuTorch one of some kind."""
    infer = bundles.runtime_of(runtime).start(tiny.make(runtime))[0]
    infer(photos[:2])
    for wrong in (photos[:2, :16], photos[:2, :, :16], np.zeros((2, 64, 64, 3), np.uint8), photos[0]):
        with pytest.raises(Exception):  # noqa: B017 - each runtime's own; the bundle makes a sentence of it
            infer(wrong)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("damage", ["empty", "cut", "start only", "text"])
def test_a_damaged_artifact_is_a_sentence(tiny: ModuleType, runtime: str, damage: str) -> None:
    artifact = dict(tiny.make(runtime))
    name, whole = next(iter(artifact.items()))
    artifact[name] = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "start only": whole[:60],
        "text": b"no network " * 100,
    }[damage]
    with pytest.raises(HandlensError, match=name) as error:
        bundles.runtime_of(runtime).start(artifact)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_missing_runtime_names_its_command(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    bundle.write(
        tmp_path / "b", tiny.bundle(runtime, artifact={"onnx": {"model.onnx": b""}}.get(runtime, tiny.make(runtime)))
    )
    for name in [name for name in sys.modules if name.startswith(f"{PACKAGES[runtime]}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, PACKAGES[runtime], None)
    with pytest.raises(NotHereError) as error:
        run.load(tmp_path / "b")
    assert str(error.value).endswith(f'pip install "handlens[{runtime}]"')
    assert bundles.check(tmp_path / "b").facts_agree is (True if runtime == "litert" else None)


# ---- handlens.load ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_load_and_predict(tiny: ModuleType, tmp_path: Path, runtime: str, name: str) -> None:
    bundle.write(tmp_path / name, tiny.bundle(runtime, precision="float16"))
    classifier = handlens.load(tmp_path / name, threads=1)
    assert (classifier.net, classifier.runtime, classifier.precision) == ("tiny", runtime, "float16")
    assert classifier.classes == tiny.CLASSES
    assert classifier.preprocess == tiny.PREPROCESS
    assert classifier.card["licence"] == "CC0-1.0"
    for index in range(3):
        photo = tiny.photo(index)
        expected = tiny.answer(tiny.PREPROCESS.load(photo)[None])[0][0]
        guesses = classifier.predict(photo)
        assert guesses[0].name == tiny.CLASSES[index]
        assert guesses[0].probability == pytest.approx(expected.max(), abs=1e-5)
        assert len(guesses) == 3
    probabilities, logits = classifier.infer(tiny.PREPROCESS.load(tiny.photo(1))[None])
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(1), probabilities, rtol=1e-4)
    np.testing.assert_array_equal(classifier.predict_batch(tiny.PREPROCESS.load(tiny.photo(1))[None]), probabilities)


def test_many_photos(tiny: ModuleType, tmp_path: Path) -> None:
    bundle.write(tmp_path / "b.zip", tiny.bundle())
    paths = [tmp_path / f"{index}.png" for index in range(20)]
    for index, path in enumerate(paths):
        path.write_bytes(tiny.photo(index) if index != 7 else b"no photo")
    answers = list(handlens.load(tmp_path / "b.zip").predict_many(paths, batch_size=6))
    assert [path for path, _ in answers] == paths
    for index, (_, answer) in enumerate(answers):
        if index == 7:
            assert isinstance(answer, PhotoError)
        else:
            assert not isinstance(answer, PhotoError)
            assert answer[0].name == tiny.CLASSES[index % 3]


def test_a_run_has_logits_too(tiny_run: Path, tiny_photos: Path) -> None:
    classifier = handlens.load(tiny_run, threads=1)
    assert (classifier.runtime, classifier.precision, classifier.card) == ("torch", "float32", {})
    images = np.stack([classifier.preprocess.load(path) for path in sorted(tiny_photos.rglob("0[0-2].jpg"))])
    probabilities, logits = classifier.infer(images)
    assert logits.shape == probabilities.shape == (9, 3)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(powers / powers.sum(1, keepdims=True), probabilities, atol=1e-6)


@pytest.mark.parametrize("runtime", ["torch", *RUNTIMES])
def test_arrays_that_are_no_photos_of_the_contract(
    tiny: ModuleType, photos: np.ndarray, tmp_path: Path, tiny_run: Path, runtime: str
) -> None:
    if runtime == "torch":
        infer = run.load(tiny_run).infer
    else:
        bundle.write(tmp_path / "b", tiny.bundle(runtime))
        infer = run.load(tmp_path / "b").infer
    infer(photos)
    wrong: list[Any] = [
        photos.astype(np.float32) / 255, photos.astype(np.int64), photos[:, :16], photos[:, :, :16],
        photos.transpose(0, 3, 1, 2), photos[0], photos[..., :1], list(photos), None,
    ]  # fmt: skip
    for given in wrong:
        with pytest.raises(HandlensError, match=r"takes photos as a uint8 array \(B, 32, 32, 3\), these are .*stack"):
            infer(given)


@pytest.mark.parametrize("threads", [-1, "2"])
def test_threads_that_there_cannot_be(tiny: ModuleType, tmp_path: Path, threads: Any) -> None:
    bundle.write(tmp_path / "b", tiny.bundle())
    with pytest.raises(HandlensError, match=r"threads is .*expected 1 to 1024, or 0"):
        run.load(tmp_path / "b", threads)


def test_a_runtime_that_is_busy_says_so(tiny: ModuleType, photos: np.ndarray, tmp_path: Path) -> None:
    def busy(photos: np.ndarray) -> Any:
        raise RuntimeError("Infer Request is busy")

    infer = bundles._checked(tmp_path / "b", tiny.bundle(), busy, tiny.FACTS)
    with pytest.raises(HandlensError, match=r"\(Infer Request is busy\); where threads share it, let one call it"):
        infer(photos)


def test_a_file_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "b.zip").write_text("notes")
    with pytest.raises(HandlensError, match=r"neither a run's folder nor a bundle"):
        run.load(tmp_path / "notes.txt")
    with pytest.raises(HandlensError, match=r"no zip"):
        run.load(tmp_path / "b.zip")
    with pytest.raises(HandlensError, match=r"there is no run or bundle"):
        run.load(tmp_path / "nothing.zip")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_artifact_without_facts(tiny: ModuleType, tmp_path: Path, runtime: str) -> None:
    bundle.write(tmp_path / "b", tiny.bundle(artifact=tiny.make(runtime, None), runtime=runtime))
    with pytest.raises(HandlensError, match="carries no facts"):
        run.load(tmp_path / "b")


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"classes": ["花朵", "blue sky", "🌿 leaf"]}, "other classes"),
        ({"preprocess": {}}, "other preprocess"),
        ({"format_version": 7}, "an artifact of format 7"),
    ],
)
def test_an_artifact_of_something_else(tiny: ModuleType, tmp_path: Path, facts: dict[str, Any], named: str) -> None:
    inside = json.dumps(json.loads(tiny.FACTS) | facts)
    bundle.write(tmp_path / "b", tiny.bundle(artifact=tiny.make("onnx", inside)))
    with pytest.raises(HandlensError, match=named):
        run.load(tmp_path / "b")


def test_an_artifact_for_another_size(tiny: ModuleType, tmp_path: Path) -> None:
    bundle.write(tmp_path / "b", tiny.bundle(artifact=tiny.onnx_file(px=64)))
    with pytest.raises(HandlensError, match="cannot be run on photos of 1x32x32x3") as error:
        run.load(tmp_path / "b").predict(tiny.photo(0))
    assert "\n" not in str(error.value)


def test_an_artifact_of_fewer_classes(tiny: ModuleType, tmp_path: Path) -> None:
    classes = (*tiny.CLASSES, "one more")
    inside = bundle.facts("tiny", classes, tiny.PREPROCESS)
    bundle.write(tmp_path / "b", tiny.bundle(classes=classes, artifact=tiny.make("onnx", inside), golden=()))
    with pytest.raises(HandlensError, match="answers 1 photos with 1x3 and 1x3 numbers, for 4 classes"):
        run.load(tmp_path / "b").predict(tiny.photo(0))


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_nothing_is_reported_home(tiny: ModuleType, runtime: str, tmp_path: Path) -> None:
    """By default both leave a number here that their makers know this machine by."""
    pytest.importorskip(PACKAGES[runtime])
    bundle.write(tmp_path / "b", tiny.bundle(runtime=runtime))
    (home := tmp_path / "home").mkdir()
    own = {name: str(home) for name in ("HOME", "USERPROFILE", "LOCALAPPDATA", "TMPDIR", "TEMP", "TMP")}
    own |= {"https_proxy": "http://127.0.0.1:9", "HANDLENS_CACHE": str(tmp_path / "cache")}
    kept = {
        name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY")
    }
    code = "import sys, handlens; handlens.load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path / "b"], env=kept | own, check=True)
    assert not [*home.rglob("*")]


# ---- without torch ---------------------------------------------------------------------------------------------------
NO_TORCH = """
import sys
sys.modules["torch"] = None  # an attempt to import it fails
import handlens
classifier = handlens.load(sys.argv[1])
print([guess.name for guess in classifier.predict(sys.argv[2])])
heavy = ("torch", "torchvision", "sklearn", "matplotlib", "scipy", "onnx", "jax")
print([name for name in heavy if sys.modules.get(name)])
"""


@pytest.mark.parametrize("runtime", ["onnx", "litert", "openvino"])
def test_torch_is_not_loaded(tiny: ModuleType, tmp_path: Path, runtime: str) -> None:
    bundle.write(tmp_path / "b.zip", tiny.bundle(runtime))
    (tmp_path / "photo.png").write_bytes(tiny.photo(1))
    arguments = [sys.executable, "-c", NO_TORCH, tmp_path / "b.zip", tmp_path / "photo.png"]
    found = subprocess.run(arguments, capture_output=True, text=True, encoding="utf-8", env=utf8())
    assert found.stderr == ""
    names, heavy = found.stdout.splitlines()
    assert names.startswith("['花朵'")
    assert heavy == "[]"


def utf8() -> dict[str, str]:
    return os.environ | {"PYTHONIOENCODING": "utf-8"}


@pytest.mark.slow
def test_executorch_by_itself(tiny: ModuleType, tmp_path: Path) -> None:
    """In a process that holds nothing else of the bundle; its library's reports stay off standard error."""
    bundle.write(tmp_path / "b.zip", tiny.bundle("executorch"))
    (tmp_path / "photo.png").write_bytes(tiny.photo(1))
    code = "import sys, handlens; print(handlens.load(sys.argv[1]).predict(sys.argv[2])[0].name)"
    arguments = [sys.executable, "-c", code, tmp_path / "b.zip", tmp_path / "photo.png"]
    found = subprocess.run(arguments, capture_output=True, text=True, encoding="utf-8", env=utf8())
    assert (found.stdout.strip(), found.stderr) == ("花朵", "")


def test_executorchs_threads_are_made_anew_for_another_number_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of the same process may be running in them."""
    library = pytest.importorskip("executorch.extension.pybindings.portable_lib", reason="executorch is not installed")
    pools = [8]
    monkeypatch.setattr(library, "_threadpool_get_thread_count", lambda: pools[-1])
    monkeypatch.setattr(library, "_unsafe_reset_threadpool", pools.append)
    for threads in (2, 2, 0, 2, 1, 1):
        with pytest.raises(HandlensError):
            bundles.runtime_of("executorch").start({"model.pte": b"no file"}, threads)
    assert pools == [8, 2, 1]


# ---- Core ML ---------------------------------------------------------------------------------------------------------
def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def mlpackage(facts: str | None, name: str = "handlens") -> dict[str, bytes]:
    """A network's description as Apple's Model.proto has it, and what a package needs around it."""
    entries = field(100, field(1, b"other") + field(2, b"value"))
    if facts is not None:
        entries += field(100, field(1, name.encode()) + field(2, facts.encode()))
    description = field(1, b"input") + field(100, field(1, b"short") + entries)
    fixed = varint(7 << 3 | 1) + bytes(8) + varint(8 << 3 | 5) + bytes(4)
    return {
        "model.mlpackage/Manifest.json": b"{}",
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel": field(1, 9) + fixed + field(2, description),
    }


def test_core_ml_is_read_but_not_run(tiny: ModuleType, tmp_path: Path) -> None:
    assert bundles.runtime_of("coreml").embedded(mlpackage(tiny.FACTS)) == tiny.FACTS
    bundle.write(tmp_path / "b", tiny.bundle("coreml", artifact=mlpackage(tiny.FACTS)))
    with pytest.raises(HandlensError, match="macOS"):
        run.load(tmp_path / "b")
    found = bundles.check(tmp_path / "b")
    assert (found.facts_agree, found.answers) == (True, ())
    assert "macOS" in found.left_out


def test_core_ml_files_that_are_none(tiny: ModuleType, tmp_path: Path) -> None:
    embedded = bundles.runtime_of("coreml").embedded
    whole = mlpackage(tiny.FACTS)
    name = "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    for facts, called in ((None, "handlens"), (tiny.FACTS, "another")):
        with pytest.raises(HandlensError, match="no facts"):
            embedded(mlpackage(facts, called))
    for data in (*(whole[name][:length] for length in range(len(whole[name]))), b"\xff" * 50, b"text" * 9, b"\x12\xff"):
        with pytest.raises(HandlensError):
            embedded(whole | {name: data})
    with pytest.raises(HandlensError, match="no facts"):
        embedded({})
    other = json.dumps(json.loads(tiny.FACTS) | {"net": "other"})
    bundle.write(tmp_path / "b", tiny.bundle("coreml", artifact=mlpackage(other)))
    with pytest.raises(HandlensError, match="other net"):
        bundles.check(tmp_path / "b")


# ---- checking --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("precision", "expected", "got", "ok"),
    [
        ("float32", (0.7, 0.2, 0.1), (0.7005, 0.1995, 0.1), True),
        ("float32", (0.7, 0.2, 0.1), (0.702, 0.198, 0.1), False),
        ("float32", (0.4005, 0.4, 0.1995), (0.4, 0.4005, 0.1995), True),  # too close to tell
        ("float32", (0.4, 0.35, 0.25), (0.35, 0.4, 0.25), False),
        ("float16", (0.7, 0.2, 0.1), (0.708, 0.192, 0.1), True),
        ("float16", (0.7, 0.2, 0.1), (0.72, 0.18, 0.1), False),
        ("int8", (0.7, 0.2, 0.1), (0.45, 0.3, 0.25), True),
        ("int8", (0.7, 0.2, 0.1), (0.3, 0.45, 0.25), False),
        ("int8", (0.45, 0.3, 0.25), (0.3, 0.45, 0.25), True),  # too close to tell
        ("int8", (0.46, 0.25, 0.29), (0.4, 0.25, 0.35), True),
        ("bfloat16", (0.7, 0.2, 0.1), (0.6, 0.3, 0.1), True),
        ("bfloat16", (0.7, 0.2, 0.1), (0.4, 0.5, 0.1), False),
        ("bfloat16", (0.45, 0.4, 0.15), (0.4, 0.45, 0.15), True),
        ("float32", (0.7, 0.2, 0.1), (float("nan"), 0.2, 0.1), False),
        ("int8", (0.7, 0.2, 0.1), (float("nan"), 0.2, 0.1), False),
    ],
)
def test_what_is_right(
    tiny: ModuleType, precision: str, expected: tuple[float, ...], got: tuple[float, ...], ok: bool
) -> None:
    golden = Golden(photo=b"", probabilities=expected)
    answer = bundles.compare("golden/0.jpg", golden, np.array(got, np.float32), tiny.bundle(precision=precision))
    assert answer.ok is ok
    assert answer.expected == tiny.CLASSES[0]


def test_one_class_only(tiny: ModuleType) -> None:
    alone = tiny.bundle(classes=("a",))
    assert bundles.compare("p", Golden(photo=b"", probabilities=(1.0,)), np.ones(1, np.float32), alone).ok


@pytest.mark.parametrize("runtime", ["onnx", "litert", "openvino"])
def test_very_many_photos_go_by_threads_that_each_answer(tiny: ModuleType, tmp_path: Path, runtime: str) -> None:
    """Each thread reads and answers; order, errors and answers are those of one photo at a time."""
    bundle.write(tmp_path / "tiny.zip", tiny.bundle(runtime))
    classifier = run.load(tmp_path / "tiny.zip")
    photos = []
    for number in range(run.MANY + 5):
        photos.append(tmp_path / f"{number}.png")
        photos[-1].write_bytes(tiny.photo(number))
    photos[7].write_bytes(b"no photo")
    started = []

    def counted() -> Any:
        started.append(1)
        assert classifier.start_shared
        return classifier.start_shared()

    seen: list[tuple[int, int]] = []
    many = dataclasses.replace(classifier, start_shared=counted)
    found = list(many.predict_many(photos, 2, progress=lambda done, total: seen.append((done, total))))
    assert [path for path, _ in found] == photos and started == [1]
    assert isinstance(found[7][1], PhotoError) and seen[-1] == (len(photos), len(photos))
    for path, guesses in found[:7] + found[8:]:
        alone = classifier.predict(path, 2)
        assert [guess.name for guess in guesses] == [guess.name for guess in alone]
        assert np.allclose([guess.probability for guess in guesses], [guess.probability for guess in alone], atol=1e-6)
    assert list(many.predict_many(photos[:5])) and started == [1]  # few: not worth another start
    assert run.load(tmp_path / "tiny.zip", threads=2).start_shared is None  # as many threads as were asked for


def test_ctrl_c_after_openvinos_networks_ended_in_other_threads(tiny: ModuleType, tmp_path: Path) -> None:
    """It was a segmentation fault on processors with AMX, of which a process of its own can tell."""
    bundle.write(tmp_path / "tiny.zip", tiny.bundle("openvino"))
    script = f"""
import os, signal, threading, time
from handlens import bundle
from handlens.run import openvino_runtime
made = [openvino_runtime.start(bundle.read({str(tmp_path / "tiny.zip")!r}).artifact, 1)]
thread = threading.Thread(target=made.clear)
thread.start()
thread.join()
assert openvino_runtime.core() is openvino_runtime.core()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_openvino_is_given_the_threads_that_were_asked_for(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino_runtime = bundles.runtime_of("openvino")
    real, made = openvino_runtime._compile, []
    monkeypatch.setattr(openvino_runtime, "_compile", lambda *given: made.append(real(*given)) or made[-1])
    openvino_runtime.start(tiny.make("openvino"), 1)
    compiled = made[0][0]
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
@pytest.mark.parametrize(("lead", "ok"), [(0.19, True), (0.21, False)])
def test_how_close_two_classes_must_be(tiny: ModuleType, precision: str, lead: float, ok: bool) -> None:
    expected, got = (0.5, 0.5 - lead, lead), (0.5 - lead, 0.5, lead)
    golden = Golden(photo=b"", probabilities=expected)
    assert bundles.compare("p", golden, np.array(got, np.float32), tiny.bundle(precision=precision)).ok is ok
