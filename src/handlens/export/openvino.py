"""OpenVINO: a network's description in XML beside a file of its weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from handlens.bundle import FACTS_KEY
from handlens.errors import missing_extra
from handlens.export.converting import converting
from handlens.nets import Net
from handlens.nets.pixels import FromPixels
from handlens.preprocess import Preprocess
from handlens.run.openvino_runtime import ARITHMETIC

FILE, WEIGHTS = "model.xml", "model.bin"


def convert(
    net: Net, preprocess: Preprocess, facts: str, float16: bool = False, bfloat16: bool = False
) -> dict[str, bytes]:
    """{"model.xml": ..., "model.bin": ...}: uint8 photos (batch, H, W, 3) -> probabilities, logits, float32 (batch, K).

    The names are `photos`, `probabilities`, `logits`; the batch is free. The facts are in the runtime info under
    "handlens". With `float16` weights are stored as halves; what a file is computed in is chosen where it is loaded
    (INFERENCE_PRECISION_HINT). With `bfloat16` the file, else a float32 one, says that it is to be that: halves as
    weights would be computed with more slowly.
    Raises HandlensError naming the operation that OpenVINO cannot express.
    """
    try:
        import openvino
    except ImportError:
        raise missing_extra("export-openvino", "openvino") from None
    network = FromPixels(net, preprocess).eval()
    shape = (image_px := preprocess.image_px, image_px, 3)
    photos, batch = torch.zeros(2, *shape, dtype=torch.uint8), torch.export.Dim("batch", min=1, max=1024)
    with converting("openvino", net), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(network, (photos,), dynamic_shapes=({0: batch},))
        model = openvino.convert_model(program, input=[(openvino.PartialShape([-1, *shape]), openvino.Type.u8)])
        model.inputs[0].get_tensor().set_names({"photos"})
        for output, name in zip(model.outputs, ("probabilities", "logits"), strict=True):
            output.get_tensor().set_names({name})
        describe(model, facts)
        if bfloat16:
            model.set_rt_info("bf16", list(ARITHMETIC))
        openvino.save_model(model, Path(folder, FILE), compress_to_fp16=float16)
        return {name: Path(folder, name).read_bytes() for name in (FILE, WEIGHTS)}


def describe(model: Any, facts: str) -> None:
    """Put the facts into a model, and that what meets eight-bit weights is not to be rounded too, as OpenVINO would."""
    model.set_rt_info(facts, FACTS_KEY)
    model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
