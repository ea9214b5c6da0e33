"""A network's forward pass operation by operation, each with the module that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


class Calls(TorchFunctionMode):
    """While it is entered, every torch operation in the forward pass of `net` goes through `call`.

    `scope` is then the name of the module whose forward is running, as `net.named_modules()` has it: "" for the
    network itself. Operations outside of the network's forward pass run as ever.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._scopes: list[str] = []
        self._hooks: list[RemovableHandle] = []

    @property
    def scope(self) -> str:
        return self._scopes[-1]

    def begin(self, *inputs: Any) -> None:
        """A forward pass of the network begins."""

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation; `name` is torch's for it: "conv2d", "relu", "add"."""
        return func(*args, **kwargs)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if not self._scopes:
            return func(*args, **(kwargs or {}))
        return self.call(func.__name__, func, args, kwargs or {})

    def __enter__(self) -> Self:
        for name, module in self.net.named_modules():
            self._hooks.append(module.register_forward_pre_hook(partial(self._enter_module, name)))
            self._hooks.append(module.register_forward_hook(self._leave_module, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        while self._hooks:
            self._hooks.pop().remove()

    def _enter_module(self, name: str, module: nn.Module, inputs: Any) -> None:
        if not self._scopes:
            self.begin(*inputs)
        self._scopes.append(name)

    def _leave_module(self, *_: Any) -> None:
        self._scopes.pop()


def inside(scope: str, module: str) -> bool:
    """Whether a scope is a module, by name, or one within it."""
    return scope == module or scope.startswith(f"{module}.")


def tensors_in(values: Any) -> list[torch.Tensor]:
    """The tensors among the arguments or results of an operation, in lists and tuples too."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in tensors_in(value)]
    return []
