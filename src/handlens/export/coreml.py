"""Core ML: an .mlpackage, by coremltools. It converts on Linux and macOS; Core ML itself runs on Apple's only."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from handlens.bundle import FACTS_KEY
from handlens.export.converting import converting
from handlens.nets import Net
from handlens.nets.pixels import FromPixels
from handlens.nets.vit import VisionTransformer
from handlens.preprocess import Preprocess

FOLDER = "model.mlpackage"


class _FromImage(nn.Module):
    """FromPixels for what Core ML makes of an image: float32 RGB (1, 3, H, W), 0 to 255."""

    def __init__(self, net: Net, preprocess: Preprocess) -> None:
        super().__init__()
        self.pixels = FromPixels(net, preprocess)

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        probabilities, logits = self.pixels(photos.permute(0, 2, 3, 1))
        return probabilities, logits


def convert(net: Net, preprocess: Preprocess, facts: str, float16: bool = False) -> dict[str, bytes]:
    """The members of "model.mlpackage/...": an ML program for iOS 15, macOS 12 and later.

    Input `photos` is an image, image_px square. Outputs: `label`, the class; `probabilities`, by class name; `logits`,
    (1, K). The facts are in the user-defined metadata under "handlens". With `float16` weights and arithmetic are
    halves. Without classes in the facts, `probabilities` is an array like `logits` and there is no label.
    Raises HandlensError naming the operation that Core ML cannot express.
    """
    with converting("coreml", net):
        import coremltools as ct

        if isinstance(net, VisionTransformer):  # Core ML has no bicubic resampling
            net = net.at(preprocess.image_px)
        classes = json.loads(facts).get("classes")
        shape = (1, 3, preprocess.image_px, preprocess.image_px)
        program = torch.export.export(_FromImage(net, preprocess).eval(), (torch.zeros(shape),)).run_decompositions({})
        probabilities, logits = program.graph_signature.user_outputs
        model = ct.convert(
            program,
            inputs=[ct.ImageType(name="photos", shape=shape, color_layout=ct.colorlayout.RGB)],
            # Which output it is has to be named: else it is what was computed last, in halves the logits.
            classifier_config=ct.ClassifierConfig(classes, "label", probabilities) if classes else None,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT16 if float16 else ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS15,
            skip_model_load=True,
        )
        spec = model.get_spec()
        made = spec.description.predictedProbabilitiesName if classes else probabilities
        for old, name in ((made, "probabilities"), (logits, "logits")):
            ct.utils.rename_feature(spec, old, name)
        model = ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
        model.user_defined_metadata[FACTS_KEY] = facts
        model.short_description = f"{type(net).__name__}, by handlens"
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder, FOLDER)
            model.save(str(package))
            paths = sorted(path for path in package.rglob("*") if path.is_file())
            return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
