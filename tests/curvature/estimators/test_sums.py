"""What residual sums and averages read, scored with inputs of the last convolution before, against dense float64."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.dense_derivatives import Enumerated, categorical_information, dense_jacobian, measured
from helpers.input_changes import dense_input_changes, joint_candidates, levels, rounded_jointly
from helpers.networks import class_loss
from helpers.profiles import plain_profile
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from lightning_mpq import BitPolicy, quantize
from lightning_mpq.curvature.cache.kept_measurements import candidate_hashes
from lightning_mpq.curvature.estimators import gauss_newton
from lightning_mpq.curvature.estimators.joint import JointColumns
from lightning_mpq.inputs.changed_operands import operands_changed
from lightning_mpq.inputs.operands import OPERAND_SCHEME
from lightning_mpq.inputs.operations import by_operand
from lightning_mpq.inputs.quantizer import InputRange
from lightning_mpq.modules.inspection import policy_of
from lightning_mpq.modules.quantized_operands import operand_ranges
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import FLOAT, InputScheme, LayerScheme

OWNERS = {"add0": "b", "add1": "c", "mean0": "c"}
INPUTS = (InputScheme(4), InputScheme(8, clip="percentile"))


class Residual(nn.Module):
    """A sum in place, another one, and a mean; a reference may change what they read."""

    change: Callable[[str, Tensor], Tensor] | None = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.c, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 3)

    def at(self, name: str, x: Tensor) -> Tensor:
        return x if self.change is None else self.change(name, x)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x)
        other = self.b(F.relu(hidden))
        hidden, other = self.at("add0:0", hidden), self.at("add0:1", other)
        hidden += other
        hidden = F.relu(hidden)
        other = self.c(hidden)
        hidden = self.at("add1:0", hidden) + self.at("add1:1", other)
        return self.head(self.at("mean0:0", hidden).mean((2, 3)))


class Case:
    """The network, its batch, joint candidates with ranges, and who owns which operand."""

    def __init__(self) -> None:
        self.model = Residual().double().eval()
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(5, 1, 6, 6, generator=generator, dtype=torch.float64)
        self.labels = torch.arange(5) % 3
        self.groups, alone, _ = measured(self.model, (2, 3))
        candidates = joint_candidates(self.model, self.groups, alone, INPUTS)
        self.rounded = rounded_jointly(self.model, [(self.x, self.labels)], self.groups, candidates)
        self.candidates = self.rounded.candidates

    def profiled(self, **settings):
        known = {"groups": self.groups, "rounded": self.rounded, "likelihood": Categorical(), **settings}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "The calls of these layers")  # every column by the backward pass itself
            return plain_profile(self.model, [(self.x, self.labels)], **known)

    def owns(self, operand: str, candidate) -> bool:
        """Tell whether an operand is quantized where a candidate is chosen."""
        return candidate.scheme.input != FLOAT and OWNERS[operand.split(":")[0]] == candidate.group

    def without_sums(self) -> Tensor:
        """Return the change of the outputs along weights and inputs of each candidate, [N, outputs, K]."""
        weights = dense_jacobian(self.model, self.x) @ measured(self.model, (2, 3))[2]
        weights = weights[..., JointColumns.of(self.candidates).weight_of]
        return weights + dense_input_changes(self.model, self.x, self.groups, self.candidates, self.rounded)

    def changes(self) -> Tensor:
        """Return that with the sums, by the derivative of each output by each operand."""
        read: dict[str, tuple[Tensor, Tensor]] = {}

        def moved(name: str, x: Tensor) -> Tensor:
            read[name] = x.detach().clone(), torch.zeros_like(x).requires_grad_()
            return x + read[name][1]

        self.model.change = moved
        outputs = self.model(self.x)
        self.model.change = None
        found = self.without_sums()
        for sample in range(len(self.x)):
            for output in range(3):
                slopes = torch.autograd.grad(outputs[sample, output], [e for _, e in read.values()], retain_graph=True)
                for (name, (x, _)), slope in zip(read.items(), slopes, strict=True):
                    error = ((levels(x, OPERAND_SCHEME, self.rounded, name) - x) * slope).sum()
                    own = [index for index, each in enumerate(self.candidates) if self.owns(name, each)]
                    found[sample, output, own] += error
        return found

    def curvature(self, changes: Tensor) -> Tensor:
        information = categorical_information(self.model(self.x).detach())
        return torch.einsum("noi,nop,npj->ij", changes, information, changes) / len(self.x)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def test_sums_belong_to_the_last_convolution_before_them(case):
    assert dict(case.rounded.operands) == OWNERS
    assert case.rounded.operands_of(case.groups) == {"b": ["add0"], "c": ["add1", "mean0"]}
    with_sums = JointColumns.of(case.candidates, {"b", "c"})
    assert with_sums.sums == ("b", "c")
    row = torch.randn(2, len(with_sums.weights) + len(with_sums.inputs) + 2)
    extra = with_sums.summed(row) - JointColumns.of(case.candidates).summed(row[:, :-2])
    for index, candidate in enumerate(case.candidates):
        column = {"b": -2, "c": -1}.get(candidate.group) if candidate.scheme.input != FLOAT else None
        expected = torch.zeros(2) if column is None else row[:, column]
        assert_close(extra[:, index], expected, atol=1e-5, rtol=0)


def test_fisher_scores_sums_exactly_and_they_matter(case):
    taylor = case.profiled(likelihood=Enumerated(), draws=3)
    exact = case.curvature(case.changes())
    assert_close(taylor.curvature, exact, rtol=1e-8, atol=1e-11 * float(exact.max()))
    without = case.curvature(case.without_sums())
    assert float((exact - without).abs().max()) > 1e-4 * float(exact.max())


@pytest.mark.parametrize("way", [0, 10**9], ids=["from the outputs", "from the candidates"])
def test_gauss_newton_scores_sums_exactly(case, way, monkeypatch):
    monkeypatch.setattr(gauss_newton, "_PASSES_PER_OUTPUT", way)
    exact = case.curvature(case.changes())
    taylor = case.profiled(estimator="gauss_newton")
    assert_close(taylor.curvature, exact, rtol=1e-8, atol=1e-11 * float(exact.max()))


def test_the_gradient_of_the_task_loss_is_along_sums_too(case):
    taylor = case.profiled(loss="task", loss_fn=class_loss)
    outputs = case.model(case.x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(outputs, case.labels), outputs)
    assert_close(taylor.gradient, torch.einsum("no,nok->k", slope, case.changes()))


def test_secant_adds_the_step_of_the_sums(case):
    base = case.model(case.x).detach()

    def step_of(**changed) -> Tensor:
        for name, value in changed.items():
            setattr(case.model, name, value)
        step = case.model(case.x).detach() - base
        case.model.change = None
        return step

    steps = []
    for candidate in case.candidates:
        layer, scheme = case.model.get_submodule(candidate.group), candidate.scheme.quantized_input
        before = layer.weight.detach().clone()
        layer.weight.data = (
            quantize_rows(before.flatten(1), candidate.scheme.weight).dequantize(torch.float64).view_as(before)
        )
        step = step_of()
        layer.weight.data = before
        if scheme is not None:
            hook = layer.register_forward_pre_hook(
                lambda m, args, s=scheme, n=candidate.group: levels(args[0], s, case.rounded, n)
            )
            step = step + step_of()
            hook.remove()
        sums = {
            name: case.rounded.inputs[name, OPERAND_SCHEME]
            for name, owner in by_operand(case.rounded.operands).items()
            if owner == candidate.group and scheme is not None
        }
        step = step + step_of(change=lambda n, x, s=sums: levels(x, OPERAND_SCHEME, case.rounded, n) if n in s else x)
        steps.append(step)
    exact = case.curvature(torch.stack(steps, -1))
    taylor = case.profiled(estimator="secant")
    assert_close(taylor.curvature, exact, rtol=1e-6, atol=1e-9 * float(exact.max()))


def test_what_is_packed_is_what_was_scored(case):
    offered = {c.group: c.scheme for c in case.candidates if c.scheme.input == INPUTS[0]}
    for schemes in (offered, {**offered, "c": LayerScheme(offered["c"].weight)}):
        policy = BitPolicy(schemes, operands=None)
        packed = quantize(copy.deepcopy(case.model), policy, [case.x], rounded=case.rounded)
        own = {site for site, owner in OWNERS.items() if policy[owner].input != FLOAT}
        assert set(policy_of(packed).operands) == own
        for name, (scheme, found) in operand_ranges(packed).items():
            assert found == case.rounded.inputs[name, scheme]


def test_measurements_that_are_kept_know_the_ranges_of_sums(case):
    before = candidate_hashes(case.groups, case.candidates, case.rounded)
    moved = dict(case.rounded.inputs) | {("add1:1", OPERAND_SCHEME): InputRange(0.5, 3)}
    other = replace(case.rounded, inputs=moved)
    after = candidate_hashes(case.groups, case.candidates, other)
    changed = [a != b for a, b in zip(before, after, strict=True)]
    assert changed == [c.group == "c" and c.scheme.input != FLOAT for c in case.candidates]
    assert other.fingerprint != case.rounded.fingerprint


def test_a_model_is_left_as_it_was_when_a_pass_fails(case):
    def fail(name: str, x: Tensor) -> Tensor:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="add0:0"), operands_changed(case.model, OWNERS, fail):
        case.model(case.x)
    assert "forward" not in vars(case.model)
    case.model(case.x)
