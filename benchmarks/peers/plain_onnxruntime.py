"""The same by onnxruntime and Pillow as a careful user would write it: threads that decode, batches of eight."""

from __future__ import annotations

import csv
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from PIL import Image

given = json.loads(sys.argv[1])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = given["threads"]
session = onnxruntime.InferenceSession(given["onnx"], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
mean, std = np.float32(given["mean"]), np.float32(given["std"])
px, resize_px = given["px"], given["resize_px"]


def read(path):
    photo = Image.open(path).convert("RGB")
    scale = resize_px / min(photo.size)
    photo = photo.resize([max(resize_px, int(side * scale)) for side in photo.size], Image.Resampling.BILINEAR)
    left, top = (photo.width - px) // 2, (photo.height - px) // 2
    pixels = np.asarray(photo.crop((left, top, left + px, top + px)), np.float32) / 255
    return ((pixels - mean) / std).transpose(2, 0, 1)


session.run(None, {name: np.zeros((8, 3, px, px), np.float32)})
start = time.perf_counter()
labels, best = [], []
photos = given["photos"]
with ThreadPoolExecutor(given["workers"] or 1) as pool:
    ahead = pool.map(read, photos)
    for first in range(0, len(photos), 8):
        batch = np.stack([next(ahead) for _ in photos[first : first + 8]])
        logits = session.run(None, {name: batch})[0]
        odds = np.exp(logits - logits.max(1, keepdims=True))
        labels += logits.argmax(1).tolist()
        best += (odds.max(1) / odds.sum(1)).tolist()
with open(given["csv"], "w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows(zip(photos, labels, best, strict=True))
print(json.dumps({"photos": len(labels), "seconds": time.perf_counter() - start, "labels": labels}))
