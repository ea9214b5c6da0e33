"""A network cut in two where mode "last" begins to train: a frozen trunk whose output is constant, and a tail."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from handlens.nets import Net

_SAME = 1e-4  # of the largest value: what the features through both parts may differ by


class Reached(Exception):  # noqa: N818 - no error: it ends a pass that has gone far enough
    """The trunk's last module has given its map."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


def _stop(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    raise Reached(output)


class Trunk(Net):
    """The frozen blocks of a network: `embed` gives the map of the last of them, (B, 3, H, W) -> (B, *shape)."""

    def __init__(self, net: Net, frozen: Sequence[nn.Module], trained: Sequence[nn.Module]) -> None:
        super().__init__()
        copies: dict[int, Any] = {id(module): nn.Identity() for module in trained}
        copies[id(net.classifier)] = nn.Sequential(nn.Identity())
        self.net: Net = copy.deepcopy(net, copies).eval().requires_grad_(False)
        copies[id(frozen[-1])].register_forward_hook(_stop)
        self.smallest_px = net.smallest_px
        self.classifier = nn.Sequential(nn.Identity())

    def features(self, images: Tensor) -> list[Tensor]:
        try:
            self.net(images)
        except Reached as reached:
            return [reached.output]
        raise RuntimeError(f"{type(self.net).__name__} does not pass through its frozen blocks")

    def pool(self, last_map: Tensor) -> Tensor:
        return last_map


class _Given(nn.Module):
    """In place of the last frozen module: gives the map that was computed before."""

    maps: Tensor | None = None

    def forward(self, _: Tensor) -> Tensor:
        assert self.maps is not None
        return self.maps


class Tail(Net):
    """The trained blocks of a network, which take the trunk's map in place of photos."""

    def __init__(self, net: Net, frozen: Sequence[nn.Module]) -> None:
        super().__init__()
        self.given = _Given()
        places: dict[int, nn.Module] = {id(module): nn.Identity() for module in frozen}
        self.rest: Net = copy.deepcopy(net, {**places, id(frozen[-1]): self.given})

    @property
    def classifier(self) -> nn.Sequential:  # type: ignore[override]
        return self.rest.classifier

    def embed(self, images: Tensor) -> Tensor:
        return self._pass(self.rest.embed, images)

    def forward(self, images: Tensor, depth: int | None = None) -> Tensor:
        return self._pass(self.rest.forward, images)

    def forward_train(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self._pass(self.rest.forward_train, images)

    def blocks(self) -> list[nn.Module]:
        return self.rest.blocks()

    def _pass(self, through: Callable[[Tensor], Any], maps: Tensor) -> Any:
        """The frozen modules' places are taken, so what runs there is a photo as small as can be."""
        self.given.maps = maps
        px = self.rest.smallest_px
        try:
            return through(maps.new_zeros(len(maps), 3, px, px))
        finally:
            self.given.maps = None


class Cut(NamedTuple):
    """net: the whole, which the parts are copies of."""

    net: Net
    trunk: Trunk
    tail: Tail

    def shape(self, px: int) -> tuple[int, ...]:
        """Of the trunk's map of one photo of this size."""
        with torch.inference_mode():
            return tuple(self.trunk.embed(torch.zeros(1, 3, px, px)).shape[1:])

    def whole(self, tail: nn.Module) -> Net:
        """The whole network with the weights of a trained tail."""
        assert isinstance(tail, Tail)
        trained = tail.rest.state_dict()
        unknown = self.net.cpu().load_state_dict(trained, strict=False).unexpected_keys
        assert not unknown, unknown
        return self.net.eval()


def cut(net: Net, last_blocks: int, prepare: Callable[[Net], Net]) -> Cut | None:
    """Cut a network before its last blocks; None where that is not possible, which a trial tells.

    `prepare` makes it ready for training once the trunk has been copied, which does not depend on it.
    """
    blocks = net.blocks()
    frozen, trained = (_modules(net, part) for part in (blocks[:-last_blocks], blocks[-last_blocks:]))
    if not frozen or net.auxiliary():  # auxiliary classifiers read maps that the tail does not make
        return None
    trunk = Trunk(net, frozen, trained)
    parts = Cut(prepare(net), trunk, Tail(net, frozen))
    return parts if _fits(parts) else None


def _modules(net: Net, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The blocks, or the modules in them where a block only groups them and is none of the network's own."""
    own = set(net.modules())
    return [module for block in blocks for module in ([block] if block in own else block.children())]


@torch.no_grad()
def _fits(parts: Cut) -> bool:
    """Whether noise goes through both parts as through the whole."""
    net, trunk, tail = parts
    px = max(2 * net.smallest_px, 64) // net.smallest_px * net.smallest_px
    photos = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(0))
    try:
        expected, found = net.eval().embed(photos), tail.eval().embed(trunk.embed(photos))
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):  # shapes that only whole networks bear
        return False
    return found.shape == expected.shape and bool((found - expected).abs().max() <= _SAME * expected.abs().max())
