"""Fine-tuning by timm's loader and the loop of its training script with that script's defaults.

SGD with momentum 0.9, rate 0.05, cosine; label smoothing 0.1; RandomResizedCrop, flip, colour jitter 0.4; float32. On
a graphics card with what its documentation names for speed: bfloat16, channels-last, its prefetcher, cuDNN's trials, a
fused optimiser, and torch.compile where that is asked for; the clock starts after `skip_epochs` epochs.
"""

from __future__ import annotations

import json
import sys
import time

import timm
import torch
from safetensors.torch import load_file
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

given = json.loads(sys.argv[1])
torch.manual_seed(0)
torch.set_num_threads(given["threads"])
device = torch.device(given.get("device", "cpu"))
on_card = device.type == "cuda"
torch.backends.cudnn.benchmark = on_card
model = timm.create_model(given["timm"], num_classes=given["num_classes"], **given["arguments"])
if given["weights"] != "none":
    state = {k: v for k, v in load_file(given["weights"]).items() if not k.startswith("classifier")}
    model.load_state_dict(state, strict=False)
if on_card:
    model = model.to(device, memory_format=torch.channels_last)
shape = {"input_size": (3, given["px"], given["px"]), "mean": given["mean"], "std": given["std"]}
more = {"use_prefetcher": on_card, "num_workers": given["workers"], "device": device}
more["batch_size"] = given.get("batch_size", 32)
train = create_loader(
    create_dataset("", root=given["folder"] + "/train"), is_training=True, color_jitter=0.4, hflip=0.5,
    scale=(0.08, 1.0), interpolation="random", **shape, **more,
)  # fmt: skip
validation = create_loader(
    create_dataset("", root=given["folder"] + "/val"), is_training=False, interpolation="bilinear",
    crop_pct=0.875, **shape, **more,
)  # fmt: skip
optimizer = create_optimizer_v2(
    model, opt="sgd", lr=given.get("lr", 0.05), momentum=0.9, weight_decay=2e-5, **({"fused": True} if on_card else {})
)
schedule = CosineLRScheduler(optimizer, t_initial=given["epochs"], lr_min=1e-5)
loss_of = LabelSmoothingCrossEntropy(0.1)
run = torch.compile(model) if given.get("compile") else model
start = time.perf_counter()
seen = 0
for epoch in range(given["epochs"]):
    if epoch == given.get("skip_epochs"):
        start, seen = time.perf_counter(), 0
    model.train()
    for images, labels in train:
        if on_card:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_card):
            loss = loss_of(run(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        seen += len(labels)
    schedule.step(epoch + 1)
    model.eval()
    right = count = 0
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=on_card):
        for images, labels in validation:
            right += int((model(images).argmax(1) == labels).sum())
            count += len(labels)
print(
    json.dumps(
        {"photos": seen, "seconds": time.perf_counter() - start, "top1": right / count, "timm": timm.__version__}
    )
)
