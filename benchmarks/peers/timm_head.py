"""A classifier on timm's frozen network by the loop of its training script, until validation is as good as wanted."""

from __future__ import annotations

import json
import sys
import time

begun = time.perf_counter()

import timm  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from timm.data import create_dataset, create_loader  # noqa: E402

given = json.loads(sys.argv[1])
torch.manual_seed(0)
torch.set_num_threads(given["threads"])
model = timm.create_model(given["timm"], num_classes=given["num_classes"], **given["arguments"])
state = {k: v for k, v in load_file(given["weights"]).items() if not k.startswith("classifier")}
model.load_state_dict(state, strict=False)
for name, parameter in model.named_parameters():
    parameter.requires_grad = name.startswith("classifier")
shape = {"input_size": (3, given["px"], given["px"]), "mean": given["mean"], "std": given["std"]}
more = {"use_prefetcher": False, "num_workers": given["workers"], "device": torch.device("cpu")}
train = create_loader(
    create_dataset("", root=given["folder"] + "/train"), batch_size=32, is_training=True, hflip=0.5, scale=(0.35, 1.0),
    interpolation="bilinear", **shape, **more,
)  # fmt: skip
validation = create_loader(
    create_dataset("", root=given["folder"] + "/val"), batch_size=64, is_training=False, interpolation="bilinear",
    crop_pct=0.875, **shape, **more,
)  # fmt: skip
optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-3)
loss_of = torch.nn.CrossEntropyLoss()
log = []
for _ in range(given["max_epochs"]):
    model.eval()  # frozen statistics, too
    for images, labels in train:
        loss = loss_of(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = count = 0
    with torch.inference_mode():
        for images, labels in validation:
            right += int((model(images).argmax(1) == labels).sum())
            count += len(labels)
    log.append({"top1": right / count, "seconds": time.perf_counter() - begun})
    if right / count >= given["top1"]:
        break
print(json.dumps({"epochs": log, "seconds": log[-1]["seconds"], "top1": log[-1]["top1"]}))
