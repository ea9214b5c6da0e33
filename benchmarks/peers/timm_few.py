"""Fine-tuning on few photos by timm's transforms, optimizer and schedule with its training script's defaults.

SGD with momentum 0.9 and weight decay 2e-5, rate 0.1 x batch / 256, 5 epochs of warm-up, cosine; label smoothing 0.1;
RandomResizedCrop from 8 % on, flip, colour jitter 0.4; float32; the last epoch's weights. Photos are decoded once.
"""

from __future__ import annotations

import json
import sys

import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from timm.data import create_transform
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

given = json.loads(sys.argv[1])
torch.manual_seed(given["seed"])
torch.set_num_threads(1)
model = timm.create_model(given["timm"], num_classes=given["num_classes"], **given["arguments"])
missing = model.load_state_dict(load_file(given["weights"]), strict=False).missing_keys
if sorted(missing) != ["classifier.bias", "classifier.weight"]:
    raise SystemExit(f"weights lack {missing}")
model = model.to(memory_format=torch.channels_last)
of_pixels = {"mean": given["mean"], "std": given["std"], "input_size": given["px"]}
augment = create_transform(
    **of_pixels, is_training=True, scale=(0.08, 1.0), hflip=0.5, color_jitter=0.4, interpolation="random"
)
plain = create_transform(**of_pixels, crop_pct=0.875, interpolation="bilinear")


def photo(path: str) -> Image.Image:
    with Image.open(path) as file:
        return ImageOps.exif_transpose(file).convert("RGB")


photos, labels = [photo(path) for path in given["train"]], torch.tensor(given["labels"])
batch = given["batch_size"]
optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1 * batch / 256, momentum=0.9, weight_decay=2e-5)
schedule, _ = create_scheduler_v2(
    optimizer, sched="cosine", num_epochs=given["epochs"], warmup_epochs=5, warmup_lr=1e-5, min_lr=0.0
)
loss_of = LabelSmoothingCrossEntropy(0.1)
for epoch in range(given["epochs"]):
    model.train()
    for chosen in torch.randperm(len(photos)).split(batch):
        if len(chosen) < batch:  # as timm's loader does
            continue
        images = torch.stack([augment(photos[index]) for index in chosen]).contiguous(memory_format=torch.channels_last)
        loss = loss_of(model(images), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step(epoch + 1)
model.eval()
answers = []
with torch.inference_mode():
    for start in range(0, len(given["test"]), 32):
        images = torch.stack([plain(photo(path)) for path in given["test"][start : start + 32]])
        answers += model(images).argmax(1).tolist()
print(json.dumps({"answers": answers}))
