"""What fvcore, torchinfo and ptflops say of every network: python benchmarks/counters.py

It needs them: pip install fvcore==0.1.5.post20221221 torchinfo==1.8.0 ptflops==0.7.5

Writes benchmarks/results/counters.json. Beside each tool's figure are the parts by which it differs from ours, counted
by ourselves: tests/docs/test_cost_page.py puts them together again and compares, network by network. torchinfo and
ptflops run on shapes alone; fvcore traces with torch.jit, which needs values, so it runs each network once.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import time
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from handlens import files, nets
from handlens.cost import layers
from handlens.cost.fakes import Fakes
from handlens.nets.layers import Conv2d

OUT = Path(__file__).parent / "results" / "counters.json"
LONGEST_S = 60  # for one tool on one network
PARTS = (
    "macs", "attention", "biases", "batch_norm", "other_norm", "adaptive_pool", "by_torchinfos_rule",
    "by_ptflops_modules", "by_ptflops_functions",
)  # fmt: skip
FUNCTIONS = {
    key: getattr(F, key) for key in ("relu", "gelu", "silu", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
}
F_LINEAR = F.linear


def ours(name: str) -> dict[str, int]:
    """Our MACs, and what the tools add to them or leave out.

    attention: matrix products of attention.  biases: values that a bias is added to.
    batch_norm, other_norm: values that these give.  adaptive_pool: values that adaptive average pooling reads.
    by_torchinfos_rule, by_ptflops_modules: what the functions of these names give, over all modules.
    by_ptflops_functions: values that the functions in `FUNCTIONS` read, also where a module calls them.
    """
    px = nets.entry(name).image_px
    net = nets.on_meta(name).eval()
    traced = layers.trace(net, px).layers
    found: Counter[str] = Counter(dict.fromkeys(PARTS, 0))
    found["macs"] = sum(layer.macs for layer in traced)
    found["attention"] = sum(layer.macs for layer in traced if "attention" in layer.kind)

    def hook(module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            found["biases"] += out.numel()
        if isinstance(module, nn.BatchNorm2d):
            found["batch_norm"] += out.numel()
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            found["other_norm"] += out.numel()
        found["by_torchinfos_rule"] += by_torchinfos_rule(module, out)
        found["by_ptflops_modules"] += by_ptflops_modules(module, given, out)

    def counted(function: Any, key: str) -> Any:
        def call(values: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
            found[key] += values.numel()
            if function is FUNCTIONS["adaptive_avg_pool2d"]:
                found["adaptive_pool"] += values.numel()
            return function(values, *rest, **named)

        return call

    def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        out = F_LINEAR(values, weight, bias)
        if id(weight) in not_in_linears and bias is not None:  # ViT's queries, keys and values
            found["biases"] += out.numel()
        return out

    in_linears = {id(module.weight) for module in net.modules() if isinstance(module, nn.Linear)}
    not_in_linears = {id(value) for value in net.parameters()} - in_linears
    for module in net.modules():
        module.register_forward_hook(hook)
    try:
        F.linear = linear
        for key, function in FUNCTIONS.items():
            setattr(F, key, counted(function, "by_ptflops_functions"))
        with torch.no_grad():
            net(torch.empty(1, 3, px, px, device="meta"))
    finally:
        F.linear = F_LINEAR
        for key, function in FUNCTIONS.items():
            setattr(F, key, function)
    return dict(found)


def by_torchinfos_rule(module: nn.Module, out: Any) -> int:
    """A module's weights, once for each pixel where its class is called Conv..., and once otherwise."""
    if any(True for _ in module.children()):
        return 0
    values = sum(value.numel() for key, value in module.named_parameters() if key in ("weight", "bias"))
    return values * (out.shape[2:].numel() if "Conv" in type(module).__name__ else 1)


def by_ptflops_modules(module: nn.Module, given: Any, out: Any) -> int:
    """ptflops' rules for classes of modules, by the exact class: a subclass of nn.Conv2d is none."""
    kind = type(module)
    if kind in (nn.Conv2d, nn.Linear):
        return out.numel() * module.weight[0].numel() + (out.numel() if module.bias is not None else 0)
    if kind in (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm):
        return given[0].numel() * (2 if getattr(module, "affine", False) else 1)
    if kind in (nn.ReLU, nn.ReLU6, nn.GELU):
        return out.numel()
    if kind in (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d):
        return given[0].numel()
    return 0


def fvcore(name: str) -> dict[str, Any]:
    from fvcore.nn import FlopCountAnalysis

    px = nets.entry(name).image_px
    net = nets.on_meta(name).eval().to_empty(device="cpu")  # whatever values: only sizes count
    analysis = FlopCountAnalysis(net, torch.zeros(1, 3, px, px))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return {
        "fvcore": int(analysis.total()),
        "fvcore_by_operator": {key: int(value) for key, value in sorted(analysis.by_operator().items())},
        "fvcore_left_out": dict(sorted(analysis.unsupported_ops().items())),
    }


def torchinfo(name: str) -> dict[str, Any]:
    import torchinfo

    px = nets.entry(name).image_px
    net = nets.on_meta(name).eval()
    photo = torch.empty(1, 3, px, px, device="meta")
    return {"torchinfo": int(torchinfo.summary(net, input_data=photo, device="meta", verbose=0).total_mult_adds)}


def ptflops(name: str) -> dict[str, Any]:
    """Its default, which looks at operations, and its other way, which looks at modules and functions.

    The latter also with our subclass of nn.Conv2d (for TensorFlow's padding, unused here) taken for nn.Conv2d.
    """
    from ptflops.aten_engine import get_flops_aten
    from ptflops.pytorch_engine import get_flops_pytorch

    px = nets.entry(name).image_px

    def says(count: Any, plain: bool = False) -> int:
        fakes = Fakes()
        net = fakes.copy_of(nets.on_meta(name)).eval()
        for module in net.modules() if plain else ():
            if type(module) is Conv2d:
                assert not module.same
                module.__class__ = nn.Conv2d
        with fakes.running(), torch.no_grad():
            photo = {"images": fakes.photos(net, 1, px)}
            macs, _ = count(net, (3, px, px), False, input_constructor=lambda _: photo)
        return int(macs)

    return {
        "ptflops": says(get_flops_aten),
        "ptflops_modules": says(get_flops_pytorch),
        "ptflops_modules_plain": says(get_flops_pytorch, plain=True),
    }


def count(name: str) -> dict[str, Any]:
    """All figures for one network. A tool that fails or takes too long has None and a reason."""
    found: dict[str, Any] = {"image_px": nets.entry(name).image_px, **ours(name)}
    for tool in (fvcore, torchinfo, ptflops):
        signal.alarm(LONGEST_S)
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                found |= tool(name)
        except Exception as error:  # theirs, of any kind
            found[tool.__name__] = None
            found[f"{tool.__name__}_reason"] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        finally:
            signal.alarm(0)
    return found


def too_long(*_: Any) -> None:
    raise TimeoutError(f"took more than {LONGEST_S} s")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_long)
    torch.set_flush_denormal(True)
    names = sys.argv[1:] or nets.names()
    counted = {}
    for name in names:
        start = time.monotonic()
        counted[name] = count(name)
        print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr)
    result = {
        "command": "python benchmarks/counters.py",
        "versions": {tool: version(tool) for tool in ("torch", "fvcore", "torchinfo", "ptflops")},
        "nets": counted,
    }
    if sys.argv[1:]:
        print(json.dumps(result, indent=1))
    else:
        files.write_json(OUT, result)
