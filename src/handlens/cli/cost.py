"""`handlens cost`: what a network costs, by layer and in sum."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from handlens.cost import Layer, Report


def cost(
    net: str = typer.Argument(
        ..., metavar="NET", help="A net's name, a run's folder, or `package.module:name` of a PyTorch module."
    ),
    width: float | None = typer.Option(None, help="Multiplier of channels."),
    image_px: int | None = typer.Option(
        None,
        help="Side of the square photo. Default: the net's published size, the run's own, or 224.",
        min=1,
        max=65_535,  # the longest side of a JPEG; far beyond it a tensor has more bytes than can be counted
    ),
    num_classes: int | None = typer.Option(None, help="Number of classes. Default: 1000.", min=1),
    json: bool = typer.Option(False, "--json", help="One JSON value on standard output."),
    picture: Path | None = typer.Option(
        None, help="Write a picture (PNG): MACs and parameters by stage, receptive field against depth."
    ),
) -> None:
    """Count what a network costs: parameters, multiply-accumulates, memory, receptive field.

    Nothing is computed but shapes. MACs are those of convolutions, linear and recurrent layers and attention for one
    photo. Memory is that of PyTorch's tensors, one photo in float32. A module of yours is imported, and called if it
    is not built yet; it takes images (B, 3, H, W).

    \b
    Examples:
      handlens cost mobilenet_v3_small
      handlens cost mobilenet_v3_large --width 0.75 --image-px 192 --json
      handlens cost runs/flowers --picture cost.png
      handlens cost my_package.nets:MyNet
    """
    import contextlib
    import sys

    from handlens import cost as room
    from handlens import files
    from handlens.cli import screen
    from handlens.errors import HandlensError

    if picture:
        files.check_place(picture, ".png")
    given = {"width": width, "num_classes": num_classes}
    with contextlib.redirect_stdout(sys.stderr):  # a module of the user's may print
        built, image_px = _built(net, {key: value for key, value in given.items() if value is not None}, image_px)
        report = room.report_on(built, image_px)
    if json:
        screen.print_json({"net": net, **as_json(report)})
    else:
        _show(net, report)
    if picture:
        from handlens.cost import picture as pictures

        title = ", ".join([net, *(f"{key} {value}" for key, value in given.items() if value is not None)])
        png = pictures.by_stage(report, f"{title}, {report.image_px} px")
        with files.atomic(picture) as file:
            file.write(png)
        screen.note(f"the picture is {picture}")
    if report.stopped:
        traced = sum(layer.output_shape is not None for layer in report.layers)
        counted = "everything else is counted" if report.macs is not None else "parameters and weights are counted"
        raise HandlensError(report.stopped, f"{counted}, and the {traced} layers before it")


def as_json(report: Report) -> dict[str, Any]:
    """The report's members by name."""
    left_out = ("is_map",)
    return {
        **{key: getattr(report, key) for key in report.__dataclass_fields__ if key != "layers"},
        "weight_bytes": report.weight_bytes._asdict(),
        "layers": [
            {key: getattr(layer, key) for key in layer.__dataclass_fields__ if key not in left_out}
            for layer in report.layers
        ],
    }


def _built(net: str, given: dict[str, Any], image_px: int | None) -> tuple[nn.Module, int | None]:
    """The network, and the photo's size where it is not given."""
    from handlens import checkpoint, nets
    from handlens.errors import HandlensError

    if Path(net).is_dir():
        if given:
            raise HandlensError(f"{net} is a run, whose network is built already", f"leave out {_options(given)}")
        found = checkpoint.load(net)
        return found.net, image_px or found.preprocess.image_px
    if ":" in net:
        return _imported(net, given), image_px
    return nets.on_meta(net, **given), image_px or nets.entry(net).image_px


def _imported(name: str, given: dict[str, Any]) -> nn.Module:
    """`package.module:name`: a module, or a class or function that gives one; also from the current folder."""
    import importlib
    import sys

    from torch import nn
    from torch.nn.parameter import UninitializedParameter

    from handlens.errors import HandlensError

    module, _, member = name.partition(":")
    sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in member.split("."):
            found = getattr(found, part)
    except Exception as error:  # anything: it may be anyone's
        missing = isinstance(error, ModuleNotFoundError)
        hint = "install it, or type this in the folder that it is in" if missing else "write it as package.module:name"
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HandlensError(f"{name} could not be imported: {why}", hint) from error
    finally:
        sys.path.remove("")
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise HandlensError(f"{name} is a {type(found).__name__}, expected a PyTorch module or what builds one")
        try:
            found = found(**given)
        except Exception as error:  # anything: it may be anyone's
            raise HandlensError(
                f"{name} could not be built: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
                "options are passed on to it, and no others",
            ) from error
    elif given:
        raise HandlensError(f"{name} is built already", f"leave out {_options(given)}")
    if not isinstance(found, nn.Module):
        raise HandlensError(f"{name} gave a {type(found).__name__}, expected a PyTorch module")
    if any(isinstance(value, UninitializedParameter) for value in found.parameters()):
        raise HandlensError(
            f"{name} has lazy layers, whose weights have no shape yet", "run it once on a photo where it is built"
        )
    return found


def _options(given: dict[str, Any]) -> str:
    return " and ".join(f"--{key.replace('_', '-')}" for key in given)


def _show(net: str, report: Report) -> None:
    from handlens.cli import screen

    cells, before = [], None
    for layer in report.layers:
        if layer.num_params or layer.macs or layer.output_shape != before:
            cells.append(
                (
                    layer.name,
                    layer.kind,
                    _shape(layer.output_shape),
                    f"{layer.num_params:,}",
                    f"{layer.macs:,}",
                    _sees(layer),
                    None if layer.stride_px is None else f"{layer.stride_px:g}",
                    None if layer.centre_px is None else f"{layer.centre_px:g}",
                )
            )
        before = layer.output_shape
    columns = ("layer", "kind", "output", "parameters", "MACs", "sees, px", "stride, px", "centre, px")
    screen.table(f"{net}, one photo of {report.image_px} px", columns, cells)
    if any("*" in row[5] for row in cells):
        screen.say("* and the whole photo by a factor: a gate, or the statistics of a norm")
    weights = report.weight_bytes
    sees = "all" if report.sees_all and report.receptive_field_px is None else report.receptive_field_px
    lines = (
        ("parameters", f"{report.num_params:,}"),
        ("MACs", None if report.macs is None else f"{report.macs:,}"),
        ("peak activations", _mb(report.peak_activation_bytes)),
        ("peak activations in training, per photo", _mb(report.peak_training_bytes)),
        ("weights", f"{_mb(weights.float32)} float32, {_mb(weights.float16)} float16, {_mb(weights.int8)} int8"),
        ("the last map sees, px", sees),
    )
    for label, value in lines:
        screen.say(f"{label}: {'not known' if value is None else value}")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not run" if shape is None else " x ".join(map(str, shape)) or "one value"


def _sees(layer: Layer) -> str:
    if layer.receptive_field_px is None:
        return "all" if layer.sees_all else "–" if layer.output_shape is None else "not known"
    return f"{layer.receptive_field_px:g}" + "*" * layer.sees_all


def _mb(size: int | None) -> str | None:
    return None if size is None else f"{size / 1e6:,.2f} MB"
