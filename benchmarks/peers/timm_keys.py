"""The names and shapes of a timm network's parameters and buffers."""

from __future__ import annotations

import json
import sys

import timm

given = json.loads(sys.argv[1])
model = timm.create_model(given["timm"], num_classes=given["num_classes"], **given["arguments"])
print(json.dumps({"shapes": {key: list(value.shape) for key, value in model.state_dict().items()}}))
