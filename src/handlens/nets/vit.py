"""Vision Transformer: An Image is Worth 16x16 Words. Dosovitskiy et al. 2020, arXiv 2010.11929."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens.errors import HandlensError
from handlens.nets.layers import Net, StochasticDepth


class Variant(NamedTuple):
    """A row of Table 1."""

    layers: int
    hidden_size: int
    mlp_size: int
    heads: int


TABLE = {  # Table 1, without Huge; Ti and S are those of DeiT (Touvron et al. 2020, arXiv 2012.12877, Table 1)
    #             layers  D   MLP  heads
    "Ti": Variant(12,  192,  768,  3),
    "S":  Variant(12,  384, 1536,  6),
    "B":  Variant(12,  768, 3072, 12),
    "L":  Variant(24, 1024, 4096, 16),
}  # fmt: skip


class Tokens(nn.Module):
    """Patches to tokens (equation 1): the class token before them, a learned position added to each."""

    def __init__(self, hidden_size: int, side: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, hidden_size))
        self.pos_embedding = nn.Parameter(torch.empty(1, 1 + side**2, hidden_size))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 1 + hw, D)."""
        positions = resample_positions(self.pos_embedding, *patches.shape[-2:])
        first = positions[:, :1] + self.class_token  # added, not concatenated: exported, the batch stays free
        tokens = F.pad(patches.flatten(2).transpose(1, 2), (0, 0, 1, 0))
        return tokens + torch.cat([first, positions[:, 1:]], 1)


def resample_positions(table: Tensor, height: int, width: int) -> Tensor:
    """Positions (1, 1 + side², D) for a grid of other size, (1, 1 + height * width, D).

    Bicubic with aligned corners, as torchvision's `interpolate_embeddings`; the class token's position is kept.
    """
    side = math.isqrt(table.shape[1] - 1)
    if (height, width) == (side, side):
        return table
    grid = table[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
    grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=True)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Appendix A): queries, keys and values from one matrix."""

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * hidden_size))
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        qkv = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, D / heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Attention, then an MLP with GELU; layer norm before each, the input added after each (equations 2 and 3)."""

    def __init__(self, variant: Variant, dropout: float) -> None:
        super().__init__()
        width = variant.hidden_size
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = SelfAttention(width, variant.heads)
        self.dropout = nn.Dropout(dropout)
        self.drop_1 = StochasticDepth()
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, variant.mlp_size),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(variant.mlp_size, width),
            nn.Dropout(dropout),
        )
        self.drop_2 = StochasticDepth()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_1(self.dropout(self.self_attention(self.ln_1(tokens))))
        return tokens + self.drop_2(self.mlp(self.ln_2(tokens)))


class Encoder(nn.Module):
    """The layers and the last norm, named as torchvision names them."""

    def __init__(self, variant: Variant, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            OrderedDict((f"encoder_layer_{n}", EncoderLayer(variant, dropout)) for n in range(variant.layers))
        )
        self.ln = nn.LayerNorm(variant.hidden_size, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) after the last layer, before the last norm."""
        return self.layers(self.dropout(tokens))


class VisionTransformer(Net):
    """Patches, tokens, encoder; the class token's output is what the classifier reads (equation 4).

    `conv_proj` makes the patches; a patch covers `patch_px` pixels a side of the photo. `image_px` sets the size of the
    position table: for photos of other sizes it is interpolated when they come.
    """

    def __init__(
        self, conv_proj: nn.Conv2d, patch_px: int, image_px: int, variant: Variant, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.smallest_px = patch_px
        self.check_input(image_px)
        self.conv_proj = conv_proj
        self.tokens = Tokens(variant.hidden_size, image_px // patch_px)
        self.encoder = Encoder(variant, dropout)
        self.classifier = nn.Sequential(nn.Linear(variant.hidden_size, num_classes))
        self.apply(_init)

    def patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w)."""
        return self.conv_proj(images)

    def features(self, images: Tensor) -> list[Tensor]:
        return [self.token_map(self.patches(images))]

    def token_map(self, patches: Tensor) -> Tensor:
        """The patches' tokens after the last layer, in their places, (B, D, h, w); without the class token."""
        tokens = self.encoder(self.tokens(patches))
        return tokens[:, 1:].transpose(1, 2).reshape(patches.shape)

    def pool(self, tokens: Tensor) -> Tensor:
        """The last layer's tokens (B, N, D), not its map -> the class token, normalised, (B, D)."""
        return self.encoder.ln(tokens[:, 0])

    def pooled(self, images: Tensor) -> Tensor:
        return self.pool(self.encoder(self.tokens(self.patches(images))))

    def blocks(self) -> list[nn.Module]:
        patches = nn.Sequential(self.conv_proj, self.tokens)
        return [patches, *self.encoder.layers, self.encoder.ln, self.classifier]

    def at(self, image_px: int) -> VisionTransformer:
        """A copy whose position table is that for photos of this size: nothing is left to interpolate."""
        copied = copy.deepcopy(self)
        side = image_px // self.smallest_px
        table = resample_positions(self.tokens.pos_embedding.detach(), side, side)
        copied.tokens.pos_embedding = nn.Parameter(table.clone())
        return copied

    def check_input(self, image_px: int) -> None:
        """Raise HandlensError, naming the nearest sizes that work, for a square input that is not whole patches."""
        super().check_input(image_px)
        patch = self.smallest_px
        if image_px % patch:
            below = image_px // patch * patch
            raise HandlensError(
                f"{image_px} px is not a multiple of {patch} px, the patch of this {type(self).__name__}",
                f"the nearest sizes that work are {below} and {below + patch} px",
            )


def _init(module: nn.Module) -> None:
    """Matrices and tables N(0, 0.02) cut at 2, biases 0, norms 1."""
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.ones_(parameter)
        else:
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)


def vit(
    size: str, patch_px: int, num_classes: int = 1000, image_px: int = 224, dropout: float = 0.0
) -> VisionTransformer:
    """A Vision Transformer of size "Ti", "S", "B" or "L" with square patches of 16 or 32 px.

    `image_px` is the photo size that the position table is made for; `dropout` follows the positions, the attention
    and each layer of the MLP (the paper: 0.1 when trained on ImageNet). Raises HandlensError where `image_px` is not a
    multiple of `patch_px`.
    """
    variant = TABLE[size]
    conv_proj = nn.Conv2d(3, variant.hidden_size, patch_px, patch_px)
    return VisionTransformer(conv_proj, patch_px, image_px, variant, num_classes, dropout)


vit_ti_16 = partial(vit, "Ti", 16)
vit_ti_32 = partial(vit, "Ti", 32)
vit_s_16 = partial(vit, "S", 16)
vit_s_32 = partial(vit, "S", 32)
vit_b_16 = partial(vit, "B", 16)
vit_b_32 = partial(vit, "B", 32)
vit_l_16 = partial(vit, "L", 16)
vit_l_32 = partial(vit, "L", 32)
