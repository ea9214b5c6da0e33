"""The network of docs/adding-a-network.md is built from the page, registered, and compared with torchvision's."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from handlens import cost, nets
from handlens.nets import contracts, layers, published, weights

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-network.md"
THE_FILE, THE_LINE, ITS_WEIGHTS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.M)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("docs") / "mnasnet.py"
    path.write_text(THE_FILE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mnasnet", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registered(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = eval(f"{{{THE_LINE}}}", {"Entry": nets.Entry, "mnasnet": module.mnasnet})
    for name, entry in lines.items():
        monkeypatch.setitem(nets.NETS, name, entry)


def torchvisions(width: float) -> torch.nn.Module:
    """torchvision's network with weights and statistics that give lively logits."""
    from torchvision.models import mnasnet

    torch.manual_seed(0)
    net = mnasnet.MNASNet(width)
    for module in layers.modules_of(net, torch.nn.BatchNorm2d):
        torch.nn.init.normal_(module.running_mean, 0, 0.1)
        torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        torch.nn.init.uniform_(module.weight, 0.8, 1.4)
    torch.nn.init.normal_(net.classifier[-1].weight, 0, 0.1)
    return net.eval()


@pytest.mark.usefixtures("registered")
def test_the_page_states_its_cost() -> None:
    num_params, macs = cost.count("mnasnet1_0")
    assert f"{num_params:,} parameters and {macs:,} MACs at width 1, 224 px" in THE_FILE
    assert (num_params, round(macs / 1e9, 3)) == (4_383_312, 0.314)  # as torchvision states


@pytest.mark.usefixtures("registered")
@torch.no_grad()
@pytest.mark.parametrize(("width", "image_px"), [(1.0, 64), (0.5, 97)])
def test_logits_are_torchvisions(width: float, image_px: int) -> None:
    theirs = torchvisions(width)
    ours = nets.create("mnasnet1_0", width=width).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, image_px, image_px)
    expected = theirs(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("registered")
def test_its_face() -> None:
    net = nets.create("mnasnet1_0", 5).eval()
    assert [stage.shape[-1] for stage in net.features(torch.zeros(1, 3, 64, 64))] == [32, 16, 8, 4, 2]
    in_blocks = [id(value) for block in net.blocks() for value in block.parameters()]
    assert sorted(in_blocks) == sorted(id(value) for value in net.parameters())


@pytest.mark.usefixtures("registered")
def test_the_line_of_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (row,) = eval(f"[{ITS_WEIGHTS}]", {"Published": published.Published, "TV": published.TV})
    for module in (contracts, weights):  # also where the page was followed, and the row is there
        monkeypatch.setattr(module, "PUBLISHED", (*(other for other in module.PUBLISHED if other != row), row))
    theirs = torchvisions(1.0)
    torch.save(theirs.state_dict(), tmp_path / row.file)
    assert weights.published("mnasnet1_0") == [row]
    found = weights.find("mnasnet1_0", str(tmp_path / row.file))
    assert (found.source, found.preprocess, found.num_classes) == ("torchvision", published.TV, 1000)
    assert found.guess == ""
    assert torch.equal(weights.load(found).classifier[-1].weight, theirs.classifier[-1].weight)
