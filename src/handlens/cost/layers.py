"""A network layer by layer, as it runs: shapes, parameters, multiply-accumulates and what a unit sees."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from handlens.cost import receptive
from handlens.cost.fakes import Fakes

NO_LAYER = frozenset({"clone", "detach", "alias", "_to_copy", "lift_fresh", "empty", "copy_", "_unsafe_view"})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A module without modules in it, or an operation that a module calls itself (the sum of a shortcut, a cat).

    name, kind:    the module's path and class, or the path of the calling module with the operation's name, and this.
    output_shape:  for one photo, without the batch: (C, h, w), (N, D), (K,); None: not run in evaluation. All of it
                   where the photo is not read, as by a position bias computed from a table.
    num_params:    parameters used here for the first time. Over all layers they add up to the network's.
    macs:          multiply-accumulates of convolutions, matrix products, attention and recurrent layers.
    receptive_field_px: side of the square of pixels that a unit sees, the larger one if height and width differ, away
                   from the photo's edges. None: it sees everything, or (`sees_all` is false) it is not known, or the
                   photo is not read.
    sees_all:      the whole photo reaches a unit. With a `receptive_field_px` only by a factor: a squeeze-and-excite
                   gate, or the statistics of a group norm; without, by sums too: global pooling, attention.
    stride_px:     pixels of the photo from a unit to its neighbour; None where there is no window.
    centre_px:     centre of what the first unit sees, in pixels from the photo's edge (the first pixel's is 0.5).
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    num_params: int
    macs: int
    receptive_field_px: float | None
    sees_all: bool
    stride_px: float | None
    centre_px: float | None
    is_map: bool  # units stand at different places of the photo


@dataclass(frozen=True)
class Traced:
    """The layers in the order in which they ran; `stopped` says at which operation it ended, where it could not go on.

    Modules with parameters that were not run come last. A network that cannot be copied has no layers.
    """

    layers: tuple[Layer, ...]
    stopped: str | None


def trace(net: nn.Module, image_px: int) -> Traced:
    """Run the network in evaluation, on shapes alone, for one photo of `image_px` by `image_px`.

    Whatever it raises ends the trace and is told in `stopped`.
    """
    fakes = Fakes()
    try:
        fake = fakes.copy_of(net).eval()
    except Exception as error:  # such as a lock, which cannot be copied
        return Traced((), f"{type(net).__name__} cannot be copied: {error}")
    photo = fakes.photos(net, 1, image_px)
    recorder = _Recorder(fake, photo)
    stopped = None
    hooks = [
        register_module_forward_pre_hook(lambda module, _: recorder.enter(module)),
        register_module_forward_hook(lambda module, _, out: recorder.leave(module), always_call=False),
    ]
    try:
        with fakes.running(), torch.no_grad(), recorder:
            fake(photo)
    except Exception as error:  # anything: the network may be anyone's
        stopped = recorder.where(error)
    finally:
        for hook in hooks:
            hook.remove()
    return Traced((*recorder.layers(), *recorder.unused()), stopped)


@dataclass
class _Row:
    """A layer while it runs."""

    name: str
    kind: str
    shape: tuple[int, ...] | None = None
    params: dict[int, int] = dataclasses.field(default_factory=dict)  # how many values, by the parameter's id
    macs: int = 0
    field: receptive.Field | None = None  # None: the photo was not read


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, net: nn.Module, photo: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._net = net
        self._names = {id(module): name for name, module in net.named_modules()}
        self._leaves = {id(module) for module in net.modules() if not any(True for _ in module.children())}
        self._unused = {id(value): value.numel() for value in net.parameters()}
        self._inside: list[nn.Module] = []  # the modules whose forward is running
        self._rows: list[_Row] = []
        self._leaf: _Row | None = None  # of the module without children that is running
        self._waiting: dict[int, int] = {}  # parameters that no layer has used yet, only a view, say
        self._counts: Counter[str] = Counter()
        self._now: str | None = None  # the operation that is running
        self._product: Tensor | None = None  # what a matrix product gave, right after it
        self._fields: Any = WeakIdKeyDictionary({photo: receptive.photo()})

    def enter(self, module: nn.Module) -> None:
        if id(module) in self._names:
            self._end_leaf()  # one that calls a module kept elsewhere
            self._inside.append(module)
            if id(module) in self._leaves and module is not self._net:
                self._leaf = _Row(self._path(), type(module).__name__)

    def leave(self, module: nn.Module) -> None:
        if id(module) in self._names:
            self._end_leaf()
            self._inside.pop()

    def _end_leaf(self) -> None:
        leaf, self._leaf = self._leaf, None
        if leaf and (leaf.field or leaf.params or leaf.macs):
            self._append(leaf)

    def _path(self) -> str:
        return self._names[id(self._inside[-1])] if self._inside else ""

    def _append(self, row: _Row) -> None:
        self._counts[row.name] += 1
        if (number := self._counts[row.name]) > 1:
            row.name = f"{row.name} ({number})"
        self._rows.append(row)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        if func.namespace == "prim":
            return func(*args, **kwargs)
        self._now = str(func).removesuffix(".default")
        out = func(*args, **kwargs)
        self._now = None
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for value in given:
            if id(value) in self._unused:
                self._waiting[id(value)] = self._unused.pop(id(value))
        receptive.follow(func, args, kwargs, out, self._fields)
        made = next((value for value in tree_leaves(out) if isinstance(value, Tensor)), None)
        if made is None:
            return out
        macs = _macs(func, args, kwargs, out)
        row = self._leaf
        if row is None and self._product is not None and any(value is self._product for value in given):
            row = self._rows[-1] if func.is_view or name in NO_LAYER else None  # a linear layer's shape put right
        self._product = made if macs and name in ("mm", "addmm", "bmm") else None
        if row is None:
            if not macs and (func.is_view or name in NO_LAYER or made not in self._fields):
                return out
            row = _Row(".".join(filter(None, (self._path(), name.strip("_")))), name.strip("_"))
            self._append(row)
        row.params |= self._waiting
        self._waiting = {}
        row.macs += macs
        if made in self._fields:
            row.shape, row.field = tuple(made.shape), self._fields[made]
        elif row.field is None:
            row.shape = tuple(made.shape)
        return out

    def layers(self) -> list[Layer]:
        """What has run, also of a module that was not left."""
        return [_layer(row) for row in (*self._rows, *([self._leaf] if self._leaf and self._leaf.field else []))]

    def unused(self) -> list[Layer]:
        """The modules with parameters that no layer has used."""
        left = self._unused | self._waiting
        if self._leaf and not self._leaf.field:  # it stopped there, before anything was made of the photo
            left |= self._leaf.params
        layers = []
        for name, module in self._net.named_modules():
            own = {id(value): left.pop(id(value)) for value in module.parameters(recurse=False) if id(value) in left}
            if own:
                layers.append(_layer(_Row(name, type(module).__name__, params=own)))
        return layers

    def where(self, error: Exception) -> str:
        """One sentence about what could not run: the operation, in which module, and why."""
        path = self._path()
        what = self._now or "the forward method"
        if what == "aten._local_scalar_dense":
            what = f"reading a tensor's value ({what})"
        where = f"{path} ({type(self._inside[-1]).__name__})" if path else type(self._net).__name__
        if "data" in type(error).__name__.lower() or "DynamicOutput" in type(error).__name__:
            why = "what it gives depends on the values of the photo, not on its size alone"
        else:
            text = str(error).strip()
            why = f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
        return f"{what} in {where} cannot be traced: {why}"


def _macs(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """As torch's FlopCounterMode counts, and what that leaves out on the CPU: its attention and its LSTM."""
    if count := flop_registry.get(func._overloadpacket):
        return int(count(*args, **kwargs, out_val=out)) // 2
    name = func._overloadpacket.__name__
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return int(sdpa_flop_count(*(value.shape for value in args[:3]))) // 2  # type: ignore[no-untyped-call]
    if name == "mkldnn_rnn_layer":  # one layer in one direction, all steps
        steps, of_input, of_state = args[:3]
        return int(steps.numel() // steps.shape[-1] * (of_input.numel() + of_state.numel()))
    return 0


def _layer(row: _Row) -> Layer:
    field = row.field
    axis = max(field.window, key=lambda axis: axis.size) if field and field.window else None
    return Layer(
        name=row.name or row.kind,
        kind=row.kind,
        output_shape=row.shape[1:] if row.shape and field else row.shape,
        num_params=sum(row.params.values()),
        macs=row.macs,
        receptive_field_px=axis and _plain(axis.size),
        sees_all=bool(field and field.sees_all),
        stride_px=axis and _plain(axis.stride),
        centre_px=axis and _plain(axis.centre),
        is_map=bool(field and field.spread),
    )


def _plain(value: float) -> float:
    return int(value) if value == int(value) else value
