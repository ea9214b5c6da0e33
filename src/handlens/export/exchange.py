"""Other weights in a file that is converted already: the same bytes but for theirs, in place of another conversion."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from handlens.nets import Net

_ORDERS = {4: ((0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0)), 2: ((0, 1), (1, 0))}  # of a weight's axes
_ADDED = (0.0, 3.0)  # hard-sigmoid, relu6(x + 3) / 6, whose 3 LiteRT's converter adds to the bias before it


def exchanged(artifact: Mapping[str, bytes], old: Net, new: Net) -> dict[str, bytes] | None:
    """The artifact of `new` from the float one of `old`, a network of the same layers: the same graph, other weights.

    That takes a hundredth of the time of a conversion. None where the layers differ, or what is in the graph behind
    them (temperature, likeness), and where a weight of `old` is not found once, and once only, in the files: exporters
    combine some with others, and leave some out, such as a bias of zeros.
    """
    before, after = old.state_dict(), new.state_dict()
    if str(old) != str(new) or before.keys() != after.keys() or _behind(old) != _behind(new):
        return None
    made = {file: bytearray(content) for file, content in artifact.items()}
    taken: set[tuple[str, int]] = set()
    for name, value in before.items():
        if not value.is_floating_point():
            continue  # batch norm's count of batches, which nothing reads
        found = _find(artifact, value)
        if found is None or found[:2] in taken or value.shape != after[name].shape:
            return None
        file, start, stored = found
        taken.add((file, start))
        content = stored(after[name])
        made[file][start : start + len(content)] = content
    return {file: bytes(content) for file, content in made.items()}


def _find(artifact: Mapping[str, bytes], value: Tensor) -> tuple[str, int, Callable[[Tensor], bytes]] | None:
    """The file that holds a weight, where in it, and how it is stored; None if none does, or more places than one."""
    if value.numel() == 0 or value.min() == value.max():
        return None  # bytes that may stand anywhere
    for order, added in itertools.product(_ORDERS.get(value.ndim, (tuple(range(value.ndim)),)), _ADDED):

        def stored(value: Tensor, order: tuple[int, ...] = order, added: float = added) -> bytes:
            value = value + added if added else value  # -0.0 + 0.0 is 0.0
            return bytes(value.permute(order).contiguous().numpy().tobytes())

        content = stored(value)
        places = [(file, at) for file in artifact if (at := artifact[file].find(content)) >= 0]
        if places:
            file, at = places[0]
            once = len(places) == 1 and artifact[file].find(content, at + 1) < 0
            return (file, at, stored) if once else None
    return None


def _behind(net: Net) -> Any:
    """What of a network is in the graph behind its logits, and not among its weights."""
    like = net.familiar
    return net.temperature, like and (like.depth, like.centres.tolist(), like.slope, like.offset)
