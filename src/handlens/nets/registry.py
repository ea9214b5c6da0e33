"""Every network by name. Adding one is its file, and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from handlens.errors import HandlensError, did_you_mean
from handlens.nets import alexnet, googlenet, inception_v3, resnet, vgg, vit
from handlens.nets.efficientnet import LITE, B, efficientnet, efficientnet_lite
from handlens.nets.layers import Net
from handlens.nets.mobilenet_v1 import mobilenet_v1
from handlens.nets.mobilenet_v2 import mobilenet_v2
from handlens.nets.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from handlens.nets.shufflenet_v1 import shufflenet_v1
from handlens.nets.shufflenet_v2 import shufflenet_v2
from handlens.nets.vit_hybrid import vit_base_r50_s16_224
from handlens.nets.xception import xception


class Entry(NamedTuple):
    """A network: how it is built, where it was published, and at what input size and top-1 (percent, ImageNet)."""

    build: Callable[..., Net]
    family: str
    year: int
    image_px: int
    top1: float | None = None
    source: str = ""
    args: Mapping[str, Any] = MappingProxyType({})


_V1 = "arXiv 1704.04861 Table 6"
_V2 = "arXiv 1801.04381 Table 4"
_V3 = "arXiv 1905.02244v5 Table 9"
_V3_V1 = "arXiv 1905.02244v1 Table 3"
_SLIM = "tensorflow/models research/slim/nets/mobilenet/README.md"
_MINIMALISTIC = {"minimalistic": True}
_SHUF2 = "arXiv 1707.01083 Table 2"
_SHUF5 = "arXiv 1707.01083 Table 5"
_SHUFFLE_V2 = "arXiv 1807.11164 Table 8"
_EFFICIENT = "arXiv 1905.11946 Table 2 (ICML version)"
_LITE = "tensorflow/tpu models/official/efficientnet/lite/README.md"
_VGG = "arXiv 1409.1556 Table 3, trained and tested at scale 256"
_TORCHVISION = "torchvision 0.29, weights IMAGENET1K_V1"

NETS: dict[str, Entry] = {
    # name: Entry(builder, family, year, image_px, published top-1 in percent, its source)
    "mobilenet_v1": Entry(mobilenet_v1, "mobilenet", 2017, 224, 70.6, _V1),
    "mobilenet_v1_075": Entry(mobilenet_v1, "mobilenet", 2017, 224, 68.4, _V1, {"width": 0.75}),
    "mobilenet_v1_050": Entry(mobilenet_v1, "mobilenet", 2017, 224, 63.7, _V1, {"width": 0.5}),
    "mobilenet_v1_025": Entry(mobilenet_v1, "mobilenet", 2017, 224, 50.6, _V1, {"width": 0.25}),
    "mobilenet_v2": Entry(mobilenet_v2, "mobilenet", 2018, 224, 72.0, _V2),
    "mobilenet_v2_140": Entry(mobilenet_v2, "mobilenet", 2018, 224, 74.7, _V2, {"width": 1.4}),
    "mobilenet_v2_130": Entry(mobilenet_v2, "mobilenet", 2018, 224, 74.4, _SLIM, {"width": 1.3}),
    "mobilenet_v2_075": Entry(mobilenet_v2, "mobilenet", 2018, 224, 69.8, _SLIM, {"width": 0.75}),
    "mobilenet_v2_050": Entry(mobilenet_v2, "mobilenet", 2018, 224, 65.4, _SLIM, {"width": 0.5}),
    "mobilenet_v2_035": Entry(mobilenet_v2, "mobilenet", 2018, 224, 60.3, _SLIM, {"width": 0.35}),
    "mobilenet_v3_large": Entry(mobilenet_v3_large, "mobilenet", 2019, 224, 75.2, _V3),
    "mobilenet_v3_large_125": Entry(mobilenet_v3_large, "mobilenet", 2019, 224, 76.6, _V3, {"width": 1.25}),
    "mobilenet_v3_large_075": Entry(mobilenet_v3_large, "mobilenet", 2019, 224, 73.3, _V3, {"width": 0.75}),
    "mobilenet_v3_large_050": Entry(mobilenet_v3_large, "mobilenet", 2019, 224, 68.8, _V3, {"width": 0.5}),
    "mobilenet_v3_large_035": Entry(mobilenet_v3_large, "mobilenet", 2019, 224, 64.2, _V3, {"width": 0.35}),
    "mobilenet_v3_large_minimalistic": Entry(mobilenet_v3_large, "mobilenet", 2019, 224, 72.3, _SLIM, _MINIMALISTIC),
    "mobilenet_v3_small": Entry(mobilenet_v3_small, "mobilenet", 2019, 224, 67.5, _V3),
    "mobilenet_v3_small_125": Entry(mobilenet_v3_small, "mobilenet", 2019, 224, 70.4, _V3, {"width": 1.25}),
    "mobilenet_v3_small_075": Entry(mobilenet_v3_small, "mobilenet", 2019, 224, 65.4, _V3, {"width": 0.75}),
    "mobilenet_v3_small_050": Entry(mobilenet_v3_small, "mobilenet", 2019, 224, 58.0, _V3, {"width": 0.5}),
    "mobilenet_v3_small_035": Entry(mobilenet_v3_small, "mobilenet", 2019, 224, 49.8, _V3, {"width": 0.35}),
    "mobilenet_v3_small_minimalistic": Entry(mobilenet_v3_small, "mobilenet", 2019, 224, 61.9, _SLIM, _MINIMALISTIC),
    "mobilenet_v3_small_draft": Entry(mobilenet_v3_small, "mobilenet", 2019, 224, 67.4, _V3_V1, {"head": 1280}),
    "xception": Entry(xception, "xception", 2017, 299, 79.0, _EFFICIENT),
    "shufflenet_v1_x1_0_g1": Entry(shufflenet_v1, "shufflenet", 2017, 224, 66.4, _SHUF2, {"groups": 1}),
    "shufflenet_v1_x1_0_g2": Entry(shufflenet_v1, "shufflenet", 2017, 224, 67.3, _SHUF2, {"groups": 2}),
    "shufflenet_v1_x1_0_g3": Entry(shufflenet_v1, "shufflenet", 2017, 224, 67.4, _SHUF2, {"groups": 3}),
    "shufflenet_v1_x1_0_g4": Entry(shufflenet_v1, "shufflenet", 2017, 224, 67.2, _SHUF2, {"groups": 4}),
    "shufflenet_v1_x1_0_g8": Entry(shufflenet_v1, "shufflenet", 2017, 224, 67.6, _SHUF2, {"groups": 8}),
    "shufflenet_v1_x0_25_g8": Entry(shufflenet_v1, "shufflenet", 2017, 224, 47.3, _SHUF2, {"groups": 8, "width": 0.25}),
    "shufflenet_v1_x0_5_g4": Entry(shufflenet_v1, "shufflenet", 2017, 224, 58.4, _SHUF2, {"groups": 4, "width": 0.5}),
    "shufflenet_v1_x1_5_g3": Entry(shufflenet_v1, "shufflenet", 2017, 224, 71.5, _SHUF5, {"groups": 3, "width": 1.5}),
    "shufflenet_v1_x2_0_g3": Entry(shufflenet_v1, "shufflenet", 2017, 224, 73.7, _SHUF5, {"groups": 3, "width": 2.0}),
    "shufflenet_v2_x0_5": Entry(shufflenet_v2, "shufflenet", 2018, 224, 60.3, _SHUFFLE_V2, {"scale": 0.5}),
    "shufflenet_v2_x1_0": Entry(shufflenet_v2, "shufflenet", 2018, 224, 69.4, _SHUFFLE_V2, {"scale": 1.0}),
    "shufflenet_v2_x1_5": Entry(shufflenet_v2, "shufflenet", 2018, 224, 72.6, _SHUFFLE_V2, {"scale": 1.5}),
    "shufflenet_v2_x2_0": Entry(shufflenet_v2, "shufflenet", 2018, 224, 74.9, _SHUFFLE_V2, {"scale": 2.0}),
    "efficientnet_b0": Entry(efficientnet, "efficientnet", 2019, 224, 76.3, _EFFICIENT, B[0]),
    "efficientnet_b1": Entry(efficientnet, "efficientnet", 2019, 240, 78.8, _EFFICIENT, B[1]),
    "efficientnet_b2": Entry(efficientnet, "efficientnet", 2019, 260, 79.8, _EFFICIENT, B[2]),
    "efficientnet_b3": Entry(efficientnet, "efficientnet", 2019, 300, 81.1, _EFFICIENT, B[3]),
    "efficientnet_b4": Entry(efficientnet, "efficientnet", 2019, 380, 82.6, _EFFICIENT, B[4]),
    "efficientnet_b5": Entry(efficientnet, "efficientnet", 2019, 456, 83.3, _EFFICIENT, B[5]),
    "efficientnet_b6": Entry(efficientnet, "efficientnet", 2019, 528, 84.0, _EFFICIENT, B[6]),
    "efficientnet_b7": Entry(efficientnet, "efficientnet", 2019, 600, 84.4, _EFFICIENT, B[7]),
    "efficientnet_lite0": Entry(efficientnet_lite, "efficientnet", 2020, 224, 75.1, _LITE, LITE[0]),
    "efficientnet_lite1": Entry(efficientnet_lite, "efficientnet", 2020, 240, 76.7, _LITE, LITE[1]),
    "efficientnet_lite2": Entry(efficientnet_lite, "efficientnet", 2020, 260, 77.6, _LITE, LITE[2]),
    "efficientnet_lite3": Entry(efficientnet_lite, "efficientnet", 2020, 280, 79.8, _LITE, LITE[3]),
    "efficientnet_lite4": Entry(efficientnet_lite, "efficientnet", 2020, 300, 81.5, _LITE, LITE[4]),
    "resnet18": Entry(resnet.resnet18, "resnet", 2015, 224, 69.758, _TORCHVISION),
    "resnet34": Entry(resnet.resnet34, "resnet", 2015, 224, 73.314, _TORCHVISION),
    "resnet50": Entry(resnet.resnet50, "resnet", 2015, 224, 76.13, _TORCHVISION),
    "resnet101": Entry(resnet.resnet101, "resnet", 2015, 224, 77.374, _TORCHVISION),
    "resnet152": Entry(resnet.resnet152, "resnet", 2015, 224, 78.312, _TORCHVISION),
    "plain18": Entry(resnet.plain18, "resnet", 2015, 224, 72.06, "arXiv 1512.03385 Table 2, 10-crop"),
    "plain34": Entry(resnet.plain34, "resnet", 2015, 224, 71.46, "arXiv 1512.03385 Table 2, 10-crop"),
    "resnet20": Entry(resnet.resnet20, "resnet", 2015, 32),
    "resnet32": Entry(resnet.resnet32, "resnet", 2015, 32),
    "resnet44": Entry(resnet.resnet44, "resnet", 2015, 32),
    "resnet56": Entry(resnet.resnet56, "resnet", 2015, 32),
    "resnet110": Entry(resnet.resnet110, "resnet", 2015, 32),
    "resnet1202": Entry(resnet.resnet1202, "resnet", 2015, 32),
    "plain20": Entry(resnet.plain20, "resnet", 2015, 32),
    "plain56": Entry(resnet.plain56, "resnet", 2015, 32),
    "vit_ti_16": Entry(vit.vit_ti_16, "vit", 2020, 224, 75.452, "timm vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    "vit_ti_32": Entry(vit.vit_ti_32, "vit", 2020, 224),
    "vit_s_16": Entry(vit.vit_s_16, "vit", 2020, 224, 81.402, "timm vit_small_patch16_224.augreg_in21k_ft_in1k"),
    "vit_s_32": Entry(vit.vit_s_32, "vit", 2020, 224, 76.01, "timm vit_small_patch32_224.augreg_in21k_ft_in1k"),
    "vit_b_16": Entry(vit.vit_b_16, "vit", 2020, 224, 81.072, _TORCHVISION),
    "vit_b_32": Entry(vit.vit_b_32, "vit", 2020, 224, 75.912, _TORCHVISION),
    "vit_l_16": Entry(vit.vit_l_16, "vit", 2020, 224, 79.662, _TORCHVISION),
    "vit_l_32": Entry(vit.vit_l_32, "vit", 2020, 224, 76.972, _TORCHVISION),
    "vit_base_r50_s16_224": Entry(vit_base_r50_s16_224, "vit", 2020, 224),
    "alexnet": Entry(alexnet.alexnet, "alexnet", 2012, 227, 59.3, "NIPS 2012 Table 2, 10-crop"),
    "alexnet_torchvision": Entry(alexnet.alexnet_torchvision, "alexnet", 2014, 224, 56.522, _TORCHVISION),
    "vgg11": Entry(vgg.vgg11, "vgg", 2014, 224, 70.4, _VGG),
    "vgg11_lrn": Entry(vgg.vgg11_lrn, "vgg", 2014, 224, 70.3, _VGG),
    "vgg13": Entry(vgg.vgg13, "vgg", 2014, 224, 71.3, _VGG),
    "vgg16c": Entry(vgg.vgg16c, "vgg", 2014, 224, 71.9, _VGG),
    "vgg16": Entry(vgg.vgg16, "vgg", 2014, 224, 73.0, _VGG),
    "vgg19": Entry(vgg.vgg19, "vgg", 2014, 224, 72.7, _VGG),
    "vgg11_bn": Entry(vgg.vgg11, "vgg", 2014, 224, 70.37, _TORCHVISION, {"batch_norm": True}),
    "vgg13_bn": Entry(vgg.vgg13, "vgg", 2014, 224, 71.586, _TORCHVISION, {"batch_norm": True}),
    "vgg16c_bn": Entry(vgg.vgg16c, "vgg", 2014, 224, args={"batch_norm": True}),
    "vgg16_bn": Entry(vgg.vgg16, "vgg", 2014, 224, 73.36, _TORCHVISION, {"batch_norm": True}),
    "vgg19_bn": Entry(vgg.vgg19, "vgg", 2014, 224, 74.218, _TORCHVISION, {"batch_norm": True}),
    "googlenet": Entry(googlenet.googlenet, "inception", 2014, 224, 68.7, "BVLC Caffe, bvlc_googlenet"),
    "googlenet_torchvision": Entry(googlenet.googlenet_torchvision, "inception", 2014, 224, 69.778, _TORCHVISION),
    "inception_v3": Entry(inception_v3.inception_v3, "inception", 2015, 299, 77.294, _TORCHVISION),
}


def entry(name: str) -> Entry:
    """The registry's line for a network. Raises HandlensError naming the nearest names for an unknown one."""
    try:
        return NETS[name]
    except KeyError:
        hint = did_you_mean(name, NETS, "`handlens nets` lists them")
        raise HandlensError(f"there is no net named {name!r}", hint) from None
