"""The published weight files: a line each, with the pixel contract and the arguments that its weights were made for.

torchvision's are on download.pytorch.org, named after the first digits of their SHA-256; timm's on the Hugging Face
hub, which states their SHA-256; "package" is an installed Python package. Figures are the publishers' own: top-1 on
ImageNet's validation photos in percent, under that very contract.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from handlens.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

HALF = (0.5, 0.5, 0.5)  # as mean and std: pixels in [-1, 1]


class Published(NamedTuple):
    """A weight file that can be had.

    net:        a network of the registry.
    source:     "torchvision", "timm" or "package": where the file is, and whose parameter names it has.
    file:       torchvision: its name on download.pytorch.org; timm: the model's name on the hub, after "timm/", or an
                address elsewhere; package: the name of the file in it.
    top1:       percent.
    preprocess: what is done to a photo before these weights see it.
    arguments:  of `nets.create`, where they are not its defaults: width, padding, bn_eps, image_px.
    """

    net: str
    source: str
    file: str
    top1: float
    preprocess: Preprocess
    arguments: Mapping[str, Any] = MappingProxyType({})

    @property
    def sha256_prefix(self) -> str:
        """The digits of the SHA-256 that the file is named after; empty for the hub's."""
        found = re.search(r"-([0-9a-f]{8,64})\.pth$", self.file)
        return found[1] if found else ""


def contract(
    image_px: int,
    resize_px: int,
    interpolation: Any = "bilinear",
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Preprocess:
    """The usual kind of contract: the shorter side becomes `resize_px`, the centre square of `image_px` is cut out."""
    return Preprocess(image_px=image_px, resize_px=resize_px, interpolation=interpolation, mean=mean, std=std)


def cropped(
    image_px: int,
    crop_share: float,
    interpolation: Any = "bicubic",
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Preprocess:
    """A contract in timm's terms: the crop is `crop_share` of the shorter side, which is rounded down to pixels."""
    return contract(image_px, int(image_px / crop_share), interpolation, mean, std)


def half(image_px: int, crop_share: float, interpolation: Any = "bicubic") -> Preprocess:
    """The same with pixels in [-1, 1]."""
    return cropped(image_px, crop_share, interpolation, HALF, HALF)


def cubic(image_px: int, resize_px: int) -> Preprocess:
    """torchvision's contract for EfficientNet."""
    return contract(image_px, resize_px, "bicubic")


TV = contract(224, 256)  # torchvision's first recipe
TV2 = contract(224, 232)  # and its second
TIMM = cropped(224, 0.875)
HALF_87, HALF_90, HALF_95, HALF_384 = half(224, 0.875), half(224, 0.9), half(224, 0.95), half(384, 1.0)
MIIL = cropped(224, 0.875, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
TF = half(224, 0.875, "bilinear")
# torchvision's own transform for these two normalises by ImageNet's mean and std, and the network's first step
# (transform_input) undoes that and brings pixels to [-1, 1], as in the TensorFlow checkpoints they come from:
# (p - m) / s * (s / 0.5) + (m - 0.5) / 0.5 == (p - 0.5) / 0.5. Ours has no such step, so the contract says [-1, 1].
GOOGLENET = contract(224, 256, mean=HALF, std=HALF)
INCEPTION = contract(299, 342, mean=HALF, std=HALF)
XCEPTION = half(299, 0.8975)
LITE0, LITE1, LITE2 = (  # (pixel - 127) / 128
    contract(px, px + 32, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3) for px in (224, 240, 260)
)

SAME = {"padding": "tensorflow", "bn_eps": 1e-3}  # of timm's tf_ files: TensorFlow's padding and epsilon
E3, E5 = {"bn_eps": 1e-3}, {"bn_eps": 1e-5}
AT_384 = {"image_px": 384}  # the position table's size
_TIMM_RELEASES = "https://github.com/rwightman/pytorch-image-models/releases/download/"
XCEPTION_URL = _TIMM_RELEASES + "v0.1-cadene/xception-43020ad28.pth"

# Of a net and a width, "imagenet" means the file in an installed package, else the one with the highest top-1, those
# with TensorFlow's padding last. Of a net and a source, the first line stands for the source's habits: a local file
# of no published name is taken to follow it.
PUBLISHED = (
    Published("mobilenet_v1", "timm", "mobilenetv1_100.ra4_e3600_r224_in1k", 75.388, HALF_87),
    Published("mobilenet_v1", "timm", "mobilenetv1_125.ra4_e3600_r224_in1k", 76.920, HALF_90, {"width": 1.25}),
    Published("mobilenet_v2", "torchvision", "mobilenet_v2-b0353104.pth", 71.878, TV),
    Published("mobilenet_v2", "torchvision", "mobilenet_v2-7ebf99e0.pth", 72.154, TV2),
    Published("mobilenet_v2", "timm", "mobilenetv2_100.ra_in1k", 72.910, TIMM),
    Published("mobilenet_v2", "timm", "mobilenetv2_050.lamb_in1k", 65.928, TIMM, {"width": 0.5}),
    Published("mobilenet_v2", "timm", "mobilenetv2_140.ra_in1k", 76.528, TIMM, {"width": 1.4}),
    Published("mobilenet_v3_large", "torchvision", "mobilenet_v3_large-8738ca79.pth", 74.042, TV, E3),
    Published("mobilenet_v3_large", "torchvision", "mobilenet_v3_large-5c1a4163.pth", 75.274, TV2, E3),
    Published("mobilenet_v3_large", "timm", "mobilenetv3_large_100.ra_in1k", 75.784, TIMM, E5),
    Published("mobilenet_v3_large", "timm", "mobilenetv3_large_100.ra4_e3600_r224_in1k", 76.310, HALF_95, E5),
    Published("mobilenet_v3_large", "timm", "mobilenetv3_large_100.miil_in21k_ft_in1k", 77.920, MIIL, E5),
    Published("mobilenet_v3_large", "timm", "tf_mobilenetv3_large_100.in1k", 75.510, TF, SAME),
    Published("mobilenet_v3_large", "timm", "tf_mobilenetv3_large_075.in1k", 73.442, TF, {"width": 0.75, **SAME}),
    Published("mobilenet_v3_large_minimalistic", "timm", "tf_mobilenetv3_large_minimal_100.in1k", 72.270, TF, SAME),
    Published("mobilenet_v3_small", "torchvision", "mobilenet_v3_small-047dcff4.pth", 67.668, TV, E3),
    Published("mobilenet_v3_small", "timm", "mobilenetv3_small_100.lamb_in1k", 67.636, TIMM, E5),
    Published("mobilenet_v3_small", "timm", "mobilenetv3_small_075.lamb_in1k", 65.284, TIMM, {"width": 0.75, **E5}),
    Published("mobilenet_v3_small", "timm", "mobilenetv3_small_050.lamb_in1k", 57.918, TIMM, {"width": 0.5, **E5}),
    Published("mobilenet_v3_small", "timm", "tf_mobilenetv3_small_100.in1k", 67.922, TF, SAME),
    Published("mobilenet_v3_small", "timm", "tf_mobilenetv3_small_075.in1k", 65.706, TF, {"width": 0.75, **SAME}),
    Published("mobilenet_v3_small_minimalistic", "timm", "tf_mobilenetv3_small_minimal_100.in1k", 62.892, TF, SAME),

    Published("alexnet_torchvision", "torchvision", "alexnet-owt-7be5be79.pth", 56.522, TV),
    Published("vgg11", "torchvision", "vgg11-8a719046.pth", 69.020, TV),
    Published("vgg11_bn", "torchvision", "vgg11_bn-6002323d.pth", 70.370, TV),
    Published("vgg13", "torchvision", "vgg13-19584684.pth", 69.928, TV),
    Published("vgg13_bn", "torchvision", "vgg13_bn-abd245e5.pth", 71.586, TV),
    Published("vgg16", "torchvision", "vgg16-397923af.pth", 71.592, TV),
    Published("vgg16_bn", "torchvision", "vgg16_bn-6c64b313.pth", 73.360, TV),
    Published("vgg19", "torchvision", "vgg19-dcbb9e9d.pth", 72.376, TV),
    Published("vgg19_bn", "torchvision", "vgg19_bn-c79401a0.pth", 74.218, TV),
    Published("googlenet_torchvision", "torchvision", "googlenet-1378be20.pth", 69.778, GOOGLENET),
    Published("inception_v3", "torchvision", "inception_v3_google-0cc3c7bd.pth", 77.294, INCEPTION),
    Published("resnet18", "torchvision", "resnet18-f37072fd.pth", 69.758, TV),
    Published("resnet34", "torchvision", "resnet34-b627a593.pth", 73.314, TV),
    Published("resnet50", "torchvision", "resnet50-0676ba61.pth", 76.130, TV),
    Published("resnet50", "torchvision", "resnet50-11ad3fa6.pth", 80.858, TV2),
    Published("resnet101", "torchvision", "resnet101-63fe2227.pth", 77.374, TV),
    Published("resnet101", "torchvision", "resnet101-cd907fc2.pth", 81.886, TV2),
    Published("resnet152", "torchvision", "resnet152-394f9c45.pth", 78.312, TV),
    Published("resnet152", "torchvision", "resnet152-f82ba261.pth", 82.284, TV2),
    # torchvision's SWAG files for ViT are left out: their licence allows no commercial use
    Published("vit_b_16", "torchvision", "vit_b_16-c867db91.pth", 81.072, TV),
    Published("vit_b_32", "torchvision", "vit_b_32-d86f8d99.pth", 75.912, TV),
    Published("vit_l_16", "torchvision", "vit_l_16-852ce7e3.pth", 79.662, contract(224, 242)),
    Published("vit_l_32", "torchvision", "vit_l_32-c7638314.pth", 76.972, TV),
    Published("vit_ti_16", "timm", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", 75.452, HALF_90),
    Published("vit_s_16", "timm", "vit_small_patch16_224.augreg_in21k_ft_in1k", 81.402, HALF_90),
    Published("vit_s_32", "timm", "vit_small_patch32_224.augreg_in21k_ft_in1k", 76.010, HALF_90),
    Published("vit_b_16", "timm", "vit_base_patch16_224.augreg2_in21k_ft_in1k", 85.108, HALF_90),
    Published("vit_b_32", "timm", "vit_base_patch32_224.augreg_in21k_ft_in1k", 80.732, HALF_90),
    Published("vit_l_16", "timm", "vit_large_patch16_224.augreg_in21k_ft_in1k", 85.856, HALF_90),
    Published("vit_base_r50_s16_224", "timm", "vit_base_r50_s16_384.orig_in21k_ft_in1k", 84.988, HALF_384, AT_384),
    Published("shufflenet_v2_x0_5", "torchvision", "shufflenetv2_x0.5-f707e7126e.pth", 60.552, TV),
    Published("shufflenet_v2_x1_0", "torchvision", "shufflenetv2_x1-5666bf0f80.pth", 69.362, TV),
    Published("shufflenet_v2_x1_5", "torchvision", "shufflenetv2_x1_5-3c479a10.pth", 72.996, TV2),
    Published("shufflenet_v2_x2_0", "torchvision", "shufflenetv2_x2_0-8be3c8ee.pth", 76.230, TV2),
    Published("xception", "timm", XCEPTION_URL, 79.058, XCEPTION),
    Published("efficientnet_b0", "torchvision", "efficientnet_b0_rwightman-7f5810bc.pth", 77.692, cubic(224, 256)),
    Published("efficientnet_b1", "torchvision", "efficientnet_b1_rwightman-bac287d4.pth", 78.642, cubic(240, 256)),
    Published("efficientnet_b1", "torchvision", "efficientnet_b1-c27df63c.pth", 79.838, contract(240, 255)),
    Published("efficientnet_b2", "torchvision", "efficientnet_b2_rwightman-c35c1473.pth", 80.608, cubic(288, 288)),
    Published("efficientnet_b3", "torchvision", "efficientnet_b3_rwightman-b3899882.pth", 82.008, cubic(300, 320)),
    Published("efficientnet_b4", "torchvision", "efficientnet_b4_rwightman-23ab8bcd.pth", 83.384, cubic(380, 384)),
    Published("efficientnet_b5", "torchvision", "efficientnet_b5_lukemelas-1a07897c.pth", 83.444, cubic(456, 456), E3),
    Published("efficientnet_b6", "torchvision", "efficientnet_b6_lukemelas-24a108a5.pth", 84.008, cubic(528, 528), E3),
    Published("efficientnet_b7", "torchvision", "efficientnet_b7_lukemelas-c5b4e57e.pth", 84.122, cubic(600, 600), E3),
    Published("efficientnet_b0", "timm", "efficientnet_b0.ra_in1k", 77.698, TIMM),
    Published("efficientnet_b0", "timm", "efficientnet_b0.ra4_e3600_r224_in1k", 78.568, HALF_90),
    Published("efficientnet_b0", "timm", "tf_efficientnet_b0.in1k", 76.542, TIMM, SAME),
    Published("efficientnet_b0", "timm", "tf_efficientnet_b0.aa_in1k", 76.882, TIMM, SAME),
    Published("efficientnet_b0", "timm", "tf_efficientnet_b0.ap_in1k", 77.100, HALF_87, SAME),
    Published("efficientnet_b0", "timm", "tf_efficientnet_b0.ns_jft_in1k", 78.680, TIMM, SAME),
    Published("efficientnet_lite0", "package", "efficientnet-lite0-57934424.pth", 75.1, LITE0, SAME),
    Published("efficientnet_lite0", "timm", "efficientnet_lite0.ra_in1k", 75.488, TIMM),
    Published("efficientnet_lite0", "timm", "tf_efficientnet_lite0.in1k", 74.846, HALF_87, SAME),
    Published("efficientnet_lite1", "package", "efficientnet-lite1-77cc7160.pth", 76.7, LITE1, SAME),
    Published("efficientnet_lite1", "timm", "tf_efficientnet_lite1.in1k", 76.674, half(240, 0.882), SAME),
    Published("efficientnet_lite2", "package", "efficientnet-lite2-9656183e.pth", 77.6, LITE2, SAME),
    Published("efficientnet_lite2", "timm", "tf_efficientnet_lite2.in1k", 77.470, half(260, 0.89), SAME),
    Published("efficientnet_lite3", "timm", "tf_efficientnet_lite3.in1k", 79.808, half(300, 0.904, "bilinear"), SAME),
    Published("efficientnet_lite4", "timm", "tf_efficientnet_lite4.in1k", 81.540, half(380, 0.92, "bilinear"), SAME),
)  # fmt: skip
