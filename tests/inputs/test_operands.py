"""Sums and averages of convolutions' outputs: found by what they are computed of, in ranges shared with layers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_mpq import Calibration, RepairOptions, quantize
from lightning_mpq.demo.resnet import ResNet
from lightning_mpq.errors import NonFiniteError
from lightning_mpq.inputs.calibrate import ranges_of_policy
from lightning_mpq.inputs.operands import Operands
from lightning_mpq.inputs.operations import Site
from lightning_mpq.inputs.quantizer import InputRange, quantize_inputs, range_between
from lightning_mpq.modules.inspection import policy_of as policy_of_model
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


class Attends(nn.Module):
    """Attention of one head, by two products or by one operation, beside a product with a weight."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.queries, self.both, self.out = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(8, 8)
        self.weight, self.fused = nn.Parameter(torch.eye(8)), fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, 0] @ self.weight
        queries, (keys, values) = self.queries(x), self.both(x).chunk(2, -1)
        if self.fused:
            read = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        else:
            read = (queries @ keys.transpose(1, 2) / 8**0.5).softmax(-1).bmm(values)
        return x + self.out(read)


@pytest.mark.parametrize(("fused", "sites"), [(False, ["product0", "product1"]), (True, ["attention0"])])
def test_products_of_attention_are_sites_that_a_policy_may_name(fused, sites):
    model, batches = Attends(fused).eval(), images(4, 2)
    found = Operands(Calibration(model, batches))
    assert [site.name for site in found.sources] == sites  # neither the product with a weight nor the residual sum
    assert [set(sources) for sources in found.sources.values()][-1] == {"queries", "both"}
    assert found.owners == {}
    assert found.schemes(policy_of(model)) == {}  # only where a policy asks for them
    asked = policy_of(model, FULL, operands=dict.fromkeys(sites, FULL))
    ranges = found.ranges(asked, {})
    whole = torch.cat(batches)[:, 0]
    values = model.both(whole).chunk(2, -1)[1].detach()
    assert ranges[f"{sites[-1]}:{2 if fused else 1}"] == range_between(float(values.min()), float(values.max()), FULL)
    as_it_is = RepairOptions(biases=False)
    packed = quantize(copy.deepcopy(model), asked, batches, repair=as_it_is)
    rounded = quantize(copy.deepcopy(model), policy_of(model, FULL, operands={}), batches, repair=as_it_is)
    assert not torch.equal(packed(batches[0]), rounded(batches[0]))
    assert policy_of_model(packed).operands == asked.operands
    queries, (keys, values) = rounded.queries(x := batches[0][:, 0]), rounded.both(x).chunk(2, -1)
    levels = {
        name: quantize_inputs(read, FULL, *ranges[name].tensors())
        for name, read in zip([f"{sites[0]}:{i}" for i in range(2)], (queries, keys), strict=True)
    }
    scores = (levels[f"{sites[0]}:0"] @ levels[f"{sites[0]}:1"].transpose(1, 2)) / 8**0.5
    if fused:
        scores = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), float("-inf"))
    probabilities = scores.softmax(-1)
    if not fused:
        probabilities = quantize_inputs(probabilities, FULL, *ranges["product1:0"].tensors())
    name = f"{sites[-1]}:{2 if fused else 1}"
    expected = x + rounded.out(probabilities @ quantize_inputs(values, FULL, *ranges[name].tensors()))
    torch.testing.assert_close(packed(batches[0]), expected, atol=1e-5, rtol=1e-5)


def test_what_sums_cannot_read_is_said_by_name():
    model, batches = ResNet(8).eval(), images(4, 2)
    with torch.no_grad():
        model.stages[1][0].shortcut[1].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"What 'stages\.1\.0\.add0' reads is NaN or infinite in batch 1\."):
        Operands(Calibration(model, batches))


def test_a_branch_that_is_zero_everywhere_is_warned_of_where_it_is_quantized():
    model, batches = ResNet(8).eval(), images(4, 2)
    with torch.no_grad():
        model.stages[0][0].bn2.weight.zero_()
        model.stages[0][0].bn2.bias.zero_()
    found = Operands(Calibration(model, batches))
    with pytest.warns(UserWarning, match=r"What stages\.0\.0\.add0 read is zero in all calibration batches"):
        own = found.ranges(policy_of(model, operands={"stages.0.0.add0": FULL}), {})
    assert own["stages.0.0.add0:0"] == InputRange(1.0, 0)


class Apart(nn.Module):
    """Sums of what convolutions compute and what was multiplied since: by weights, by attention, by an equation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.attention = nn.Conv2d(1, 1, 1), nn.MultiheadAttention(8, 2, batch_first=True)
        self.weight = nn.Parameter(torch.randn(1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.a(x)[:, 0]
        attended = self.attention(rows, rows, rows, need_weights=False)[0]
        return rows + attended + torch.einsum("nab,nbc->nac", rows, rows) + F.conv2d(self.a(x), self.weight)[:, 0]


def test_what_was_multiplied_since_is_no_output_of_a_convolution():
    assert not Operands(Calibration(Apart().eval(), images(4, 2))).sources
