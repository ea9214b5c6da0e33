"""From photo file to logits: what an independent implementation gave for real weights on real photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from handlens import nets
from handlens.nets import keys
from handlens.preprocess import Preprocess

FILES = (
    "mobilenet_v1_025_128_tf_in1k",
    "mobilenet_v1_075_192_tf_in1k",
    "mobilenet_v1_100_224_tf_in1k_backbone",
    "mobilenet_v2_100_224_tf_in1k",
)
NUM_PHOTOS = [
    pytest.param(slice(0, None, 13), id="5 photos"),
    pytest.param(slice(None), id="all", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("photos", NUM_PHOTOS)
@pytest.mark.parametrize("padding", ["tensorflow", "symmetric"])
@pytest.mark.parametrize("file", FILES)
@torch.no_grad()
def test_golden_logits(shared: Path, file: str, padding: str, photos: slice) -> None:
    with safe_open(shared / "weights" / "golden.safetensors", "pt") as golden:
        names = json.loads(golden.metadata()["photos"])
        expected = golden.get_tensor(f"{file}.{'tf' if padding == 'tensorflow' else padding}")
    net, preprocess = load(shared / "weights" / f"{file}.safetensors", padding)
    images = np.stack([preprocess.load(shared / "data" / "flower_photos" / name) for name in names[photos]])
    normalised = torch.from_numpy(preprocess.normalise(images))
    answers = net.pool(net.features(normalised)[-1]) if "backbone" in file else net(normalised)
    expected = expected[photos]
    assert answers.shape == expected.shape
    assert (answers - expected).abs().max() <= 1e-5 * expected.abs().max()


def load(path: Path, padding: str) -> tuple[nets.Net, Preprocess]:
    with safe_open(path, "pt") as file:
        about = file.metadata()
    source = about["keys"].split()[0]
    net = nets.create(about["net"], width=float(about["width"]), padding=padding, bn_eps=float(about["bn_eps"])).eval()
    state = {keys.rename(source, about["net"], key): value for key, value in load_file(path).items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith("classifier.") for key in missing) and bool(missing) == ("backbone" in path.name)
    image_px = int(about["input_size"])
    mean, std = (tuple(float(value) for value in about[name].split(",")) for name in ("mean", "std"))
    return net, Preprocess(
        image_px=image_px,
        resize_px=int(image_px / float(about["crop_pct"])),
        mean=mean,
        std=std,  # type: ignore[arg-type]
    )
