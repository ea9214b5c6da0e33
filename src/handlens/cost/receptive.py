"""Which pixels of the photo a unit of each map sees, followed through every operation of a network.

A window of kernel k, dilation d, stride s and padding p over a map whose unit 0 sees the pixels first to last, with
j pixels between neighbours (Araujo et al. 2019, "Computing receptive fields of convolutional neural networks"):

    first' = first - p * j        last' = last + (d * (k - 1) - p) * j        j' = j * s

Where branches meet, a unit sees what it sees through any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class Axis(NamedTuple):
    """Along one side of the photo: the first and last pixel that unit 0 sees, and the pixels from unit to unit.

    In the photo's interior; at the edges windows reach out of it, so `first` may be negative.
    """

    first: float
    last: float
    stride: float

    @property
    def size(self) -> float:
        """Pixels that a unit sees: the receptive field."""
        return self.last - self.first + 1

    @property
    def centre(self) -> float:
        """Centre of what unit 0 sees, in pixels from the photo's edge: that of the first pixel is at 0.5."""
        return (self.first + self.last + 1) / 2


@dataclass(frozen=True)
class Field:
    """What the units of a tensor see.

    window:   along height and width, the pixels that reach a unit but by factors; None: no window, or unknown.
    sees_all: the whole photo reaches every unit, if only by a factor (a squeeze-and-excite gate, a norm's statistics).
    places:   the dimensions of the tensor that are the map's height and width, where there are two such.
    spread:   all dimensions along which units stand at different places of the photo.
    folded:   height and width of the map where they became one dimension: splitting it so gives the places back.

    Without a window `sees_all` tells whole from unknown.
    """

    window: tuple[Axis, Axis] | None
    sees_all: bool
    places: tuple[int, int] | None
    spread: frozenset[int]
    folded: tuple[int, int] | None = None


def photo() -> Field:
    """The field of the network's input (B, 3, H, W): each pixel sees itself."""
    pixel = Axis(0, 0, 1)
    return Field((pixel, pixel), False, (2, 3), frozenset((2, 3)))


class Call(NamedTuple):
    """An operation as it was called: its arguments by their names in the schema, and what it gave."""

    given: Mapping[str, Any]
    out: Tensor
    fields: Mapping[Tensor, Field]

    def first(self) -> tuple[Tensor, Field]:
        """The first tensor among the arguments that depends on the photo."""
        tensor = next(tensor for tensor in tree_leaves(self.given) if isinstance(tensor, Tensor) and tensor in self)
        return tensor, self.fields[tensor]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, Tensor) and value in self.fields


def follow(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, fields: WeakIdKeyDictionary) -> None:
    """Give what an operation made its field, by the fields of what it was given; nothing if none has one."""
    schema = func._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, args, strict=False)} | dict(kwargs)
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    if not any(isinstance(value, Tensor) and value in fields for value in tree_leaves(given)):
        return
    name = func._overloadpacket.__name__
    if name.startswith("new_") or name.endswith("_like"):  # the shape of a tensor, not its values
        return
    rule = RULES.get(name) or RULES.get(name.removesuffix("_"))
    if rule is None:
        rule = _attention if name.startswith("_scaled_dot_product") else None
    if rule is None:
        rule = _pointwise if torch.Tag.pointwise in func.tags else _unknown
    for made in (value for value in tree_leaves(out) if isinstance(value, Tensor)):
        fields[made] = rule(Call({**defaults, **given}, made, fields))


# ---- windows -----------------------------------------------------------------------------------------------------
def _convolution(call: Call) -> Field:
    tensor, field = call.first()
    if call.given.get("transposed"):
        return _unknown(call)
    return _slide(tensor, field, *(call.given[key] for key in ("weight", "stride", "padding", "dilation")))


def _pool(call: Call) -> Field:
    tensor, field = call.first()
    kernel = call.given["kernel_size"]
    return _slide(
        tensor, field, kernel, call.given["stride"] or kernel, call.given["padding"], call.given.get("dilation", 1)
    )


def _slide(tensor: Tensor, field: Field, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Field:
    """A window of `kernel` (sizes, or the filters) over a map (B, C, h, w)."""
    here = (tensor.ndim - 2, tensor.ndim - 1)
    if isinstance(kernel, Tensor):
        kernel = kernel.shape[2:]
    if not field.spread or field.window is None:
        return replace(field, places=None if len(kernel) != 2 else field.places)
    if field.places != here or len(kernel) == 1 < tensor.ndim - 2:
        return _lost(field)
    sizes = [_pair(value) for value in (kernel, stride, padding, dilation)]
    axes = [_window(axis, *(size[i] for size in sizes)) for i, axis in enumerate(field.window)]
    return replace(field, window=(axes[0], axes[1]))


def _window(axis: Axis, kernel: float, stride: float, padding: float, dilation: float) -> Axis:
    first = axis.first - padding * axis.stride
    return Axis(first, first + axis.last - axis.first + dilation * (kernel - 1) * axis.stride, axis.stride * stride)


def _pair(value: Any) -> tuple[float, float]:
    values = value if isinstance(value, (list, tuple, torch.Size)) else (value,)
    return values[0], values[-1]


def _adaptive(call: Call) -> Field:
    """Output i of n sees the inputs floor(i h / n) to ceil((i + 1) h / n) - 1; the largest is taken."""
    tensor, field = call.first()
    if field.places != (tensor.ndim - 2, tensor.ndim - 1) or field.window is None:
        return field
    if tuple(call.out.shape[-2:]) == (1, 1):
        return _whole(call.out, ())
    axes = []
    for axis, size, number in zip(field.window, tensor.shape[-2:], call.out.shape[-2:], strict=True):
        widest = max(-(-(i + 1) * size // number) - i * size // number for i in range(number))
        axes.append(_window(axis, widest, size / number, 0, 1))
    return replace(field, window=(axes[0], axes[1]))


def _pad(call: Call) -> Field:
    """The pads come from the last dimension to the first."""
    tensor, field = call.first()
    pads = dict(
        zip(range(tensor.ndim - 1, -1, -1), call.given.get("pad", call.given.get("padding"))[::2], strict=False)
    )
    return _shift(field, {dim: (-before, 1) for dim, before in pads.items() if before})


def _slice(call: Call) -> Field:
    tensor, field = call.first()
    dim = call.given["dim"] % tensor.ndim
    start = call.given["start"] or 0
    return _shift(field, {dim: (start + tensor.shape[dim] if start < 0 else start, call.given["step"])})


def _shift(field: Field, by: Mapping[int, tuple[int, int]]) -> Field:
    """Unit 0 becomes what was unit `start`, and each step as many units as `step`, along some dimensions."""
    if field.window is None or field.places is None:
        return field
    axes = []
    for dim, axis in zip(field.places, field.window, strict=True):
        start, step = by.get(dim, (0, 1))
        move = start * axis.stride
        axes.append(Axis(axis.first + move, axis.last + move, axis.stride * step))
    return replace(field, window=(axes[0], axes[1]))


# ---- what sees everything ----------------------------------------------------------------------------------------
def _whole(out: Tensor, spread: Iterable[int]) -> Field:
    return Field(None, True, None, frozenset(dim for dim in spread if out.shape[dim] > 1))


def _reduce(call: Call) -> Field:
    """A mean, sum or greatest value over some dimensions."""
    if "other" in call.given:  # the greater of two
        return _pointwise(call)
    tensor, field = call.first()
    dims = _dims(call.given.get("dim"), tensor.ndim)
    if field.spread and field.spread <= dims:
        return _whole(call.out, ())
    if field.spread & dims:
        field = _lost(field)  # all of one side
    if call.out.ndim == tensor.ndim:
        return _narrow(field, field.spread - dims, {dim: dim for dim in range(tensor.ndim)})
    left = [dim for dim in range(tensor.ndim) if dim not in dims]
    return _narrow(field, field.spread - dims, {dim: new for new, dim in enumerate(left)})


def _normalise(call: Call) -> Field:
    """Softmax and norms: a value is its own window's, by a factor from all places that it is divided by."""
    tensor, field = call.first()
    if "normalized_shape" in call.given:
        dims = frozenset(range(tensor.ndim - len(call.given["normalized_shape"]), tensor.ndim))
    elif "group" in call.given:
        dims = frozenset(range(1, tensor.ndim))
    else:
        dims = _dims(call.given["dim"], tensor.ndim)
    if call.out.ndim != tensor.ndim or call.out.shape != tensor.shape:  # the statistics that come with the result
        return _whole(call.out, ())
    if not field.spread & dims:
        return field
    return _by_factor(field) if field.spread <= dims else _lost(field)


def _batch_norm(call: Call) -> Field:
    tensor, field = call.first()
    if call.out.shape != tensor.shape:
        return _whole(call.out, ())
    return _by_factor(field) if call.given.get("training") else field


def _product(call: Call) -> Field:
    """Matrix products (..., m, k) x (..., k, n): a linear layer, or attention where both depend on the photo."""
    pair = [call.given[key] for key in ("self", "mat1", "batch1", "mat2", "batch2") if key in call.given][-2:]
    seen = [value for value in pair if value in call]
    if len(seen) == 2:
        return _mixed(call, [call.fields[value] for value in seen])
    if not seen:
        return _unknown(call)
    field = call.fields[seen[0]]
    summed = seen[0].ndim - 1 if seen[0] is pair[0] else seen[0].ndim - 2
    kept = _narrow(field, field.spread - {summed}, {dim: dim for dim in range(seen[0].ndim)})
    if summed not in field.spread:
        return kept
    return _whole(call.out, ()) if field.spread == {summed} else _lost(kept)


def _attention(call: Call) -> Field:
    query = call.given["query"]
    return _mixed(call, [call.fields[query]] if query in call else [call.first()[1]])


def _mixed(call: Call, fields: Sequence[Field]) -> Field:
    """Every place is mixed with every other; where places are dealt to batches (windows), how many is not known."""
    if any(0 in field.spread for field in fields):
        return _unknown(call)
    return _whole(call.out, range(max(0, call.out.ndim - 2), call.out.ndim))


# ---- meeting branches --------------------------------------------------------------------------------------------
def _pointwise(call: Call) -> Field:
    """Values at the same place; a smaller tensor is repeated."""
    return _union([_aligned(tensor, call) for tensor in _seen(call)])


def _factor(call: Call) -> Field:
    """Products: what sees everything and is only multiplied with a map (a gate) leaves the map its window."""
    fields = [_aligned(tensor, call) for tensor in _seen(call)]
    windowed = [field for field in fields if field.window is not None or not field.sees_all]
    if not windowed or len(windowed) == len(fields):
        return _union(fields)
    return _by_factor(_union(windowed))


def _cat(call: Call) -> Field:
    tensors = _seen(call)
    field = _union([call.fields[tensor] for tensor in tensors])
    if call.out.ndim > tensors[0].ndim:  # stack
        dim = call.given["dim"] % call.out.ndim
        return _narrow(field, field.spread, {old: old + (old >= dim) for old in range(tensors[0].ndim)})
    dim = call.given["dim"] % call.out.ndim
    return replace(field, places=None) if field.places and dim in field.places else field


def _seen(call: Call) -> list[Tensor]:
    return [value for value in tree_leaves(call.given) if isinstance(value, Tensor) and value in call]


def _aligned(tensor: Tensor, call: Call) -> Field:
    """A tensor's field with its dimensions counted as in the result."""
    field, more = call.fields[tensor], call.out.ndim - tensor.ndim
    return _narrow(field, field.spread, {dim: dim + more for dim in range(tensor.ndim)}) if more else field


def _union(fields: Sequence[Field]) -> Field:
    """A unit that sees what each of these sees."""
    if len(fields) == 1:
        return fields[0]
    places = next((field.places for field in fields if field.places), None)
    spread = frozenset[int]().union(*(field.spread for field in fields))
    folded = next((field.folded for field in fields if field.folded), None)
    windows = [field.window for field in fields if field.window is not None]
    strides = {(y.stride, x.stride) for y, x in windows}
    if len(windows) < len(fields) or len(strides) > 1:
        return Field(None, any(_lost(field).sees_all for field in fields), places, spread, folded)
    sees_all = any(field.sees_all for field in fields)
    axes = [
        Axis(min(axis.first for axis in side), max(axis.last for axis in side), side[0].stride)
        for side in zip(*windows, strict=True)
    ]
    return Field((axes[0], axes[1]), sees_all, places, spread, folded)


# ---- other shapes ------------------------------------------------------------------------------------------------
def _view(call: Call) -> Field:
    """The same values in another shape: a dimension's places go where its stretch of the values goes."""
    tensor, field = call.first()
    old, new = list(tensor.shape), list(call.out.shape)
    last_two = (len(old) - 2, len(old) - 1)
    if field.places == last_two and old[-2:] == new[-2:]:
        moved = {last_two[0]: len(new) - 2, last_two[1]: len(new) - 1}
        if field.spread <= set(last_two):
            return _narrow(field, field.spread, moved)
    ends_old, ends_new = _stretches(old), _stretches(new)
    spread = {
        dim
        for dim, (inner, outer) in enumerate(ends_new)
        if outer > inner
        for place in field.spread
        if ends_old[place][0] < outer and inner < ends_old[place][1]
    }
    return replace(_same_places(field, ends_old, ends_new), spread=frozenset(spread))


def _stretches(shape: Sequence[int]) -> list[tuple[int, int]]:
    """For each dimension the step between its values in memory, and its step times its size."""
    stretches, inner = [], 1
    for size in reversed(shape):
        stretches.append((inner, inner * size))
        inner *= size
    return stretches[::-1]


def _same_places(field: Field, old: list[tuple[int, int]], new: list[tuple[int, int]]) -> Field:
    if field.places is None:
        return _unfolded(field, old, new)
    (y_inner, y_outer), (x_inner, x_outer) = (old[dim] for dim in field.places)
    if all(old[dim] in new and old[dim][0] < old[dim][1] for dim in field.places):
        y, x = (new.index(old[dim]) for dim in field.places)
        return replace(field, places=(y, x))
    together = y_inner == x_outer and (x_inner, y_outer) in new
    return replace(field, places=None, folded=(y_outer // y_inner, x_outer // x_inner) if together else None)


def _unfolded(field: Field, old: list[tuple[int, int]], new: list[tuple[int, int]]) -> Field:
    """The field with its places again, if the one dimension that they became is split as they were."""
    if field.folded is None or len(field.spread) != 1:
        return field
    height, width = field.folded
    inner, outer = old[next(iter(field.spread))]
    sides = (inner * width, outer), (inner, inner * width)
    if outer != inner * width * height or any(side not in new for side in sides):
        return field
    return replace(field, places=(new.index(sides[0]), new.index(sides[1])), folded=None)


def _permute(call: Call) -> Field:
    tensor, field = call.first()
    count = tensor.ndim
    order = list(range(count))
    if "dims" in call.given:
        order = [dim % count for dim in call.given["dims"]]
    else:
        a, b = (call.given.get(key, default) % count for key, default in (("dim0", 0), ("dim1", count - 1)))
        order[a], order[b] = order[b], order[a]
    return _narrow(field, field.spread, {old: new for new, old in enumerate(order)})


def _expand(call: Call) -> Field:
    return _aligned(call.first()[0], call)


def _strided(call: Call) -> Field:
    """Pooling to one pixel ends with this where the map is in channels-last order; its shape is the same."""
    tensor, field = call.first()
    return field if call.out.shape == tensor.shape else _unknown(call)


def _take(call: Call) -> Field:
    """One index of a dimension, which disappears (select), or each of them (unbind)."""
    tensor, field = call.first()
    dim = call.given["dim"] % tensor.ndim
    if dim in field.spread and field.places is None:
        field = _lost(field)  # one of several tokens, which may be another sort
    return _narrow(field, field.spread - {dim}, {old: old - (old > dim) for old in range(tensor.ndim) if old != dim})


def _split(call: Call) -> Field:
    tensor, field = call.first()
    return replace(field, places=None) if call.given["dim"] % tensor.ndim in field.spread else field


def _narrow(field: Field, spread: Iterable[int], moved: Mapping[int, int]) -> Field:
    """The field with only these dimensions of its spread, each counted as `moved` says."""
    spread = frozenset(spread)
    places = None
    if field.places and all(dim in spread and dim in moved for dim in field.places):
        places = (moved[field.places[0]], moved[field.places[1]])
    return replace(field, places=places, spread=frozenset(moved[dim] for dim in spread if dim in moved))


def _dims(dims: Any, count: int) -> frozenset[int]:
    """The dimensions that an argument names, where none means all."""
    if dims is None or dims == []:
        return frozenset(range(count))
    return frozenset(dim % count for dim in ([dims] if isinstance(dims, int) else dims))


def _unknown(call: Call) -> Field:
    fields = [call.fields[tensor] for tensor in _seen(call)]
    return Field(None, any(_lost(field).sees_all for field in fields), None, frozenset(range(1, call.out.ndim)))


def _lost(field: Field) -> Field:
    """Without a window: what saw everything still does, but not what did so by factors only, which may see anything."""
    return replace(field, window=None, sees_all=field.window is None and field.sees_all)


def _by_factor(field: Field) -> Field:
    """The field after a factor from the whole photo; one that is not known stays so."""
    return field if field.window is None else replace(field, sees_all=True)


def _rules(**groups: tuple[Callable[[Call], Field], str]) -> dict[str, Callable[[Call], Field]]:
    return {name: rule for rule, names in groups.values() for name in names.split()}


RULES: dict[str, Callable[[Call], Field]] = _rules(
    convolutions=(_convolution, "convolution _convolution mkldnn_convolution cudnn_convolution"),
    pools=(_pool, "max_pool2d_with_indices max_pool2d mkldnn_max_pool2d avg_pool2d"),
    adaptive=(_adaptive, "_adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d"),
    pads=(_pad, "constant_pad_nd reflection_pad2d replication_pad2d"),
    slices=(_slice, "slice"),
    sums=(_reduce, "mean sum amax amin max min var var_mean std logsumexp linalg_vector_norm"),
    norms=(_normalise, "_softmax _log_softmax native_layer_norm native_group_norm"),
    batch_norms=(_batch_norm, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training"),
    products=(_product, "mm addmm bmm baddbmm"),
    factors=(_factor, "mul div"),
    joins=(_cat, "cat stack"),
    views=(_view, "view _unsafe_view reshape _reshape_alias unsqueeze squeeze"),
    orders=(_permute, "permute transpose t"),
    repeats=(_expand, "expand"),
    picks=(_take, "select unbind"),
    strided=(_strided, "as_strided"),
    splits=(_split, "split split_with_sizes chunk"),
    same=(_pointwise, "hardtanh hardswish clone _to_copy detach alias native_dropout lift_fresh contiguous"),
)
