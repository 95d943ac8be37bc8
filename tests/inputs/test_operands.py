"""Sums and averages of convolutions' outputs: found by what they are computed of, in ranges shared with layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_mpq import Calibration
from lightning_mpq.demo.resnet import ResNet
from lightning_mpq.inputs.calibrate import ranges_of_policy
from lightning_mpq.inputs.operands import Operands
from lightning_mpq.inputs.operations import Site
from lightning_mpq.inputs.quantizer import range_between
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme

EIGHT, FULL = InputScheme(8), InputScheme(8, clip="absmax")


def images(*sizes: int) -> list[torch.Tensor]:
    return [torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(size)) for size in sizes]


def policy_of(model: nn.Module, scheme: InputScheme = EIGHT, **known) -> BitPolicy:
    names = [name for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    return BitPolicy({name: LayerScheme(WeightScheme(8), scheme) for name in names}, **known)


def test_sites_have_names_that_are_read_back():
    for site in (Site("", "mean", 0), Site("layer1.0", "add", 12), Site("add0", "average", 1)):
        assert Site.named(site.name) == site
    for name in ("layer1.0", "add", "layer1.sub0", ""):
        with pytest.raises(ValueError, match="Expected the name of a module"):
            Site.named(name)


def test_a_resnet_has_its_residual_sums_and_its_mean():
    torch.manual_seed(0)
    model = ResNet(8).eval()
    found = Operands(Calibration(model, images(4, 2)))
    assert {site.name: len(sources) for site, sources in found.sources.items()} == {
        "stages.0.0.add0": 2, "stages.1.0.add0": 2, "stages.2.0.add0": 2, "mean0": 2,
    }  # fmt: skip
    policy = policy_of(model)
    ranges = ranges_of_policy(Calibration(model, images(4, 2)), policy)
    assert ranges["stages.1.0.conv1"] == ranges["stages.1.0.shortcut.0"]  # which read one tensor
    own = found.ranges(policy, ranges)
    assert own["stages.0.0.add0:1"] == ranges["stages.0.0.conv1"]
    assert own["stages.0.0.add0:0"] != own["stages.0.0.add0:1"]
    assert found.owners["stages.1.0.add0"] == "stages.1.0.shortcut.0"  # the last that is called
    without = BitPolicy({name: scheme for name, scheme in policy.items() if name not in ("conv", "stages.0.0.conv2")})
    assert set(found.schemes(without)) == {"stages.1.0.add0", "stages.2.0.add0", "mean0"}
    assert found.schemes(policy_of(model, operands={})) == {}
    with pytest.raises(ValueError, match=r"'stages\.0\.add5' reads, which is no sum"):
        found.schemes(policy_of(model, operands={"stages.0.add5": FULL}))


class Odd(nn.Module):
    """Sums in place, of a product, of what was changed in place in between, and after a branch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        before = self.b(hidden)
        hidden = F.relu(hidden, inplace=True)
        hidden += before
        if x.shape[0] == 3:
            return hidden + self.mix(hidden)
        return hidden


def test_sums_of_products_are_left_and_in_place_ones_are_seen():
    model, batches = Odd().eval(), images(2, 4)
    found = Operands(Calibration(model, batches))
    assert {site.name for site in found.sources} == {"add0"}
    whole = torch.cat(batches)
    scheme = {"operands": {"add0": FULL}}
    own = found.ranges(policy_of(model, FULL, **scheme), {})
    with torch.no_grad():
        read = model.a(whole).relu()
    assert own["add0:0"] == range_between(0.0, float(read.max()), FULL)
    assert not Operands(Calibration(model, images(2, 3))).sources  # their number changes from batch to batch
