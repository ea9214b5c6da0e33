"""The networks, by name: `create`, `names`, `replace_head`, `check_input`."""

from __future__ import annotations

import copy
import inspect
import numbers
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from handlens.errors import HandlensError, not_one_of
from handlens.nets.layers import Net, StochasticDepth, modules_of
from handlens.nets.registry import NETS, Entry, entry

__all__ = [
    "NETS",
    "Entry",
    "Net",
    "check_input",
    "create",
    "entry",
    "names",
    "on_meta",
    "replace_head",
    "set_stochastic_depth",
    "without_hidden",
]


_KINDS: dict[type, tuple[type, ...]] = {
    float: (float, int),
    int: (int,),
    bool: (bool,),
    str: (str,),
    tuple: (tuple, list),
}


def names(family: str | None = None) -> list[str]:
    """Names of the registered networks, of one family if given, in the registry's order."""
    return [name for name, line in NETS.items() if family in (None, line.family)]


def create(name: str, num_classes: int = 1000, **arguments: Any) -> Net:
    """Build a network with random weights.

    `arguments` are the builder's own: `width` (multiplier of channels), `padding` ("symmetric" or "tensorflow"),
    `bn_eps`, `dropout` and what else its paper names. Raises HandlensError for an unknown name or argument, fewer
    than one class, or a width that is not above zero or leaves a layer without a channel.
    """
    line = entry(name)
    arguments = {**line.args, **arguments}
    known = inspect.signature(line.build).parameters
    for argument, value in arguments.items():
        if argument not in known:
            raise HandlensError(f"{name} takes no {argument!r}", f"it takes {', '.join(known)}")
        if argument == "padding" and value not in ("symmetric", "tensorflow"):
            raise not_one_of("padding", str(value), ("symmetric", "tensorflow"))
        if argument == "width" and not (isinstance(value, (int, float)) and 0 < value <= 16):
            raise HandlensError(f"width is {value!r}, expected a multiplier above 0 and at most 16")
        kind = type(known[argument].default)
        if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind is not bool):
            raise HandlensError(f"{argument} of {name} is {value!r}, expected {kind.__name__}")
    _check_num_classes(num_classes)
    return line.build(num_classes=num_classes, **arguments)


def _check_num_classes(num_classes: int) -> None:
    whole = isinstance(num_classes, numbers.Integral) and not isinstance(num_classes, bool)  # numpy's, too
    if not whole or num_classes < 1:
        raise HandlensError(f"num_classes is {num_classes!r}, expected a whole number of at least 1")


def check_input(net: Net, image_px: int) -> None:
    """Raise HandlensError, naming a size that works, if the network cannot take square photos of `image_px`."""
    net.check_input(image_px)


def replace_head(net: Net, num_classes: int, hidden: int = 0, dropout: float = 0.2) -> Net:
    """Give the network a new last linear layer with random weights, in place, and return it.

    With `hidden` above zero a fully connected layer of that width with ReLU and `dropout` comes before it. Auxiliary
    classifiers get a new last layer too. Raises HandlensError for fewer than one class.
    """
    _check_num_classes(num_classes)
    last = net.classifier[-1]
    assert isinstance(last, nn.Linear)
    layers = list(net.classifier)[:-1]
    width = last.in_features
    if hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)]
        width = hidden
    net.classifier = nn.Sequential(*layers, _new_linear(width, num_classes)).to(last.weight).train(net.training)
    for auxiliary in net.auxiliary():
        assert isinstance(auxiliary.classifier, nn.Sequential)
        last = auxiliary.classifier[-1]
        assert isinstance(last, nn.Linear)
        auxiliary.classifier[-1] = _new_linear(last.in_features, num_classes).to(last.weight).train(net.training)
    return net


def without_hidden(net: Net, arguments: dict[str, Any]) -> Net:
    """A copy of the network less the extra layer that `replace_head` put before its last one.

    `arguments` are a checkpoint's, whose "head_hidden" is the width of that layer, if there is one.
    """
    bare = copy.deepcopy(net)
    if arguments.get("head_hidden", 0):
        *layers, linear, _, _, last = bare.classifier
        assert isinstance(linear, nn.Linear) and isinstance(last, nn.Linear)
        bare.classifier = nn.Sequential(*layers, nn.Linear(linear.in_features, last.out_features))
    return bare


def _new_linear(width: int, num_classes: int) -> nn.Linear:
    linear = nn.Linear(width, num_classes)
    nn.init.normal_(linear.weight, 0, 0.01)
    nn.init.zeros_(linear.bias)
    return linear


def set_stochastic_depth(net: Net, rate: float) -> None:
    """Set the drop probability of the residual branches: 0 at the first, growing linearly to `rate` at the last."""
    layers = list(modules_of(net, StochasticDepth))
    for index, layer in enumerate(layers):
        assert isinstance(layer, StochasticDepth)
        layer.p = rate * index / max(1, len(layers) - 1)


def on_meta(name: str, num_classes: int = 1000, **arguments: Any) -> Net:
    """The network with shapes and no memory (torch's meta device), for counting."""
    with torch.device("meta"), _Undrawn():
        return create(name, num_classes, **arguments)


class _Undrawn(TorchFunctionMode):
    """Draws no random values: on the meta device there is nothing to fill, and it would take most of the time."""

    _draws = (
        nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_,
        torch.Tensor.normal_, torch.Tensor.uniform_,
    )  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._draws:
            return (args or tuple(kwargs.values()))[0]
        return func(*args, **(kwargs or {}))
