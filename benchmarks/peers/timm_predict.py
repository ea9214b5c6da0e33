"""The same by timm's loader, transform and the loop of its inference script."""

from __future__ import annotations

import csv
import json
import sys
import time

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_loader

given = json.loads(sys.argv[1])
torch.set_num_threads(given["threads"])
model = timm.create_model(given["timm"], num_classes=given["num_classes"], **given["arguments"])
model.load_state_dict(load_file(given["weights"]))
model.eval()


class Files(torch.utils.data.Dataset):
    """Photos by path; timm's loader sets `transform`."""

    transform = None

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB")), 0


def loader(paths):
    return create_loader(
        Files(paths), input_size=(3, given["px"], given["px"]), batch_size=given.get("batch_size", 256),
        is_training=False, use_prefetcher=False, interpolation="bilinear", mean=given["mean"], std=given["std"],
        num_workers=given["workers"], crop_pct=given["px"] / (given["resize_px"] + 0.5), device=torch.device("cpu"),
    )  # fmt: skip


with torch.inference_mode():
    model(torch.zeros(2, 3, given["px"], given["px"]))
    start = time.perf_counter()
    labels = []
    probabilities = []
    for images, _ in loader(given["photos"]):
        best = model(images).softmax(-1).max(1)
        labels += best.indices.tolist()
        probabilities += best.values.tolist()
    with open(given["csv"], "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(zip(given["photos"], labels, probabilities, strict=True))
print(json.dumps({"photos": len(labels), "seconds": time.perf_counter() - start, "labels": labels}))
