"""Fine-tuning by the loop of torchvision's reference script with that script's defaults.

SGD with momentum 0.9, rate 0.1 divided by ten every 30 epochs; RandomResizedCrop and flip; float32. On a graphics card
with mixed precision (--amp; bfloat16 here), channels-last, pinned memory, workers that stay, cuDNN's trials, a fused
optimiser, and torch.compile where that is asked for; the clock starts after `skip_epochs` epochs.
"""

from __future__ import annotations

import json
import sys
import time

import torch
import torchvision
from safetensors.torch import load_file
from torchvision import transforms as T

given = json.loads(sys.argv[1])
torch.manual_seed(0)
torch.set_num_threads(given["threads"])
device = torch.device(given.get("device", "cpu"))
on_card = device.type == "cuda"
torch.backends.cudnn.benchmark = on_card
model = torchvision.models.get_model(given["torchvision"], num_classes=given["num_classes"])
if given["weights"] != "none":
    state = {k: v for k, v in load_file(given["weights"]).items() if not k.startswith("classifier")}
    model.load_state_dict(state, strict=False)
if on_card:
    model = model.to(device, memory_format=torch.channels_last)
finish = [T.PILToTensor(), T.ConvertImageDtype(torch.float), T.Normalize(given["mean"], given["std"])]
train = torchvision.datasets.ImageFolder(
    given["folder"] + "/train", T.Compose([T.RandomResizedCrop(given["px"]), T.RandomHorizontalFlip(), *finish])
)
validation = torchvision.datasets.ImageFolder(
    given["folder"] + "/val", T.Compose([T.Resize(given["resize_px"]), T.CenterCrop(given["px"]), *finish])
)
more = {"batch_size": given.get("batch_size", 32), "num_workers": given["workers"], "pin_memory": on_card}
more["persistent_workers"] = on_card and given["workers"] > 0
train_loader = torch.utils.data.DataLoader(train, shuffle=True, **more)
validation_loader = torch.utils.data.DataLoader(validation, **more)
optimizer = torch.optim.SGD(model.parameters(), lr=given.get("lr", 0.1), momentum=0.9, weight_decay=1e-4, fused=on_card)
loss_of = torch.nn.CrossEntropyLoss()
run = torch.compile(model) if given.get("compile") else model
start = time.perf_counter()
seen = 0
for epoch in range(given["epochs"]):
    if epoch == given.get("skip_epochs"):
        start, seen = time.perf_counter(), 0
    model.train()
    for images, labels in train_loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if on_card:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_card):
            loss = loss_of(run(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        seen += len(labels)
    model.eval()
    right = count = 0
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=on_card):
        for images, labels in validation_loader:
            images, labels = images.to(device), labels.to(device)
            right += int((model(images).argmax(1) == labels).sum())
            count += len(labels)
print(
    json.dumps(
        {
            "photos": seen,
            "seconds": time.perf_counter() - start,
            "top1": right / count,
            "torchvision": torchvision.__version__,
        }
    )
)
