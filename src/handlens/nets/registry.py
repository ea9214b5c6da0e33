"""Every network by name. Adding one is its file, and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

from handlens.errors import HandlensError
from handlens.nets import mobilenet_v2
from handlens.nets.layers import Net


class Entry(NamedTuple):
    """A network: how it is built, where it was published, and at what input size and top-1 (percent, ImageNet)."""

    build: Callable[..., Net]
    family: str
    year: int
    image_px: int
    top1: float | None = None
    source: str = ""
    args: dict[str, Any] = {}


NETS: dict[str, Entry] = {
    # name: Entry(builder, family, year, image_px, published top-1 in percent, its source)
    "mobilenet_v2": Entry(mobilenet_v2.mobilenet_v2, "mobilenet", 2018, 224, 72.0, "arXiv 1801.04381 Table 4"),
}


def entry(name: str) -> Entry:
    """The registry's line for a network. Raises HandlensError naming the nearest names for an unknown one."""
    try:
        return NETS[name]
    except KeyError:
        near = difflib.get_close_matches(name, NETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`handlens nets` lists them"
        raise HandlensError(f"there is no net named {name!r}", hint) from None
