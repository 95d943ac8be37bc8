"""Policies measured before one is chosen, and the loss expanded again at quantized weights, against dense oracles."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.jobs import make_job, profiled
from helpers.networks import mlp
from helpers.profiles import nearest_candidates
from helpers.state import state_of
from scipy.stats import ttest_rel
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.functional import log_softmax

from lightning_mpq.curvature import profile
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.held_out import hold_out
from lightning_mpq.network.likelihood import Categorical, Gaussian
from lightning_mpq.network.loss_change import LossChange, Losses
from lightning_mpq.options import (
    CandidateOptions,
    CurvatureOptions,
    RepairOptions,
    SelectionOptions,
    SolverOptions,
)
from lightning_mpq.pipeline.planning import Decision
from lightning_mpq.pipeline.policy_evaluator import Measured
from lightning_mpq.pipeline.policy_selection import PolicySelection
from lightning_mpq.pipeline.quantize import quantize
from lightning_mpq.pipeline.reexpansion import expand_at
from lightning_mpq.policy import BitPolicy
from lightning_mpq.rounding.independent import round_candidates
from lightning_mpq.schemes import WeightScheme

NOTHING = RepairOptions(sequential=False, batchnorm=False, biases=False)
NEAREST = CandidateOptions(bits=(2, 3, 4), rounding="nearest")
EXACT = CurvatureOptions(estimator="gauss_newton", shrink=False, likelihood=Categorical())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()


def batches() -> list[torch.Tensor]:
    return list(2 * torch.randn(4, 12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def around_two_bits(model: nn.Module, estimator: str, loss: str = "divergence"):
    groups = find_groups(model)
    rounded = round_candidates(model, (), groups, nearest_candidates(groups, bits=(2, 3)))
    policy = BitPolicy({group.name: rounded.candidates[2 * i].scheme for i, group in enumerate(groups)})
    assert set(policy.bits().values()) == {2}
    codes = rounded.of_policy(policy)
    likelihood = Categorical() if loss == "divergence" else None
    calibration = Calibration(model, batches(), likelihood=likelihood)
    taylor = expand_at(calibration, groups, rounded, codes, loss=loss, estimator=estimator, shrink=False)
    return taylor, rounded, policy


def dense(model: nn.Module, rounded, policy):
    """Return gradient and Gauss-Newton matrix of KL(float || quantized) at a policy, for all candidates."""
    inputs = torch.cat(batches())
    weights = {f"{name}.weight": rows.dequantize(torch.float64) for name, rows in rounded.of_policy(policy).items()}
    steps = [
        {
            name: (rounded.of_layer(c.group, c.scheme.weight).dequantize(torch.float64) - weight)
            if name == f"{c.group}.weight"
            else torch.zeros_like(weight)
            for name, weight in weights.items()
        }
        for c in rounded.candidates
    ]

    def outputs(t: torch.Tensor) -> torch.Tensor:
        moved = {
            name: weight + sum(t[i] * step[name] for i, step in enumerate(steps)) for name, weight in weights.items()
        }
        return functional_call(model, moved, (inputs,))

    zero = torch.zeros(len(steps), dtype=torch.float64)
    wanted = log_softmax(model(inputs).detach(), 1)

    def divergence(logits: torch.Tensor) -> torch.Tensor:
        return (wanted.exp() * (wanted - log_softmax(logits, 1))).sum(1).mean()

    jacobian, logits = jacrev(outputs)(zero), outputs(zero)
    gradient = jacrev(lambda t: divergence(outputs(t)))(zero)
    curvature = torch.einsum("nck,ncmd,mdl->kl", jacobian, hessian(divergence)(logits), jacobian)
    return gradient, curvature, float(divergence(logits))


def test_gradient_and_curvature_at_the_quantized_point_are_those_of_the_divergence_from_the_float_model():
    model = network()
    before = state_of(model)
    taylor, rounded, policy = around_two_bits(model, "gauss_newton")
    gradient, curvature, _ = dense(model, rounded, policy)
    torch.testing.assert_close(taylor.gradient, gradient)
    torch.testing.assert_close(taylor.curvature, curvature)
    assert taylor.predict(policy).value == 0  # it is where we are
    assert gradient.abs().max() > 1e-4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Trained(nn.Sequential):
    """Has a task loss of its own, and outputs whose meaning nobody could guess."""

    _trainer = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs).softmax(1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        assert self._trainer == "the trainer"
        return self(batch)[:, 0].log().square().mean()


def test_the_task_loss_at_the_quantized_point_is_that_of_the_training_step():
    model = Trained(*network())
    model._trainer = "the trainer"
    taylor, rounded, policy = around_two_bits(model, "hessian", loss="task")
    here = {f"{name}.weight": rows.dequantize(torch.float64) for name, rows in rounded.of_policy(policy).items()}
    inputs = torch.cat(batches())

    def loss(t: torch.Tensor) -> torch.Tensor:
        moved = dict(here)
        for share, candidate in zip(t, rounded.candidates, strict=True):
            name = f"{candidate.group}.weight"
            there = rounded.of_layer(candidate.group, candidate.scheme.weight).dequantize(torch.float64)
            moved[name] = moved[name] + share * (there - here[name])
        return functional_call(model, moved, (inputs,))[:, 0].log().square().mean()

    zero = torch.zeros(len(rounded.candidates), dtype=torch.float64)
    torch.testing.assert_close(taylor.gradient, jacrev(loss)(zero))
    torch.testing.assert_close(taylor.curvature, hessian(loss)(zero))


def test_it_predicts_a_nearby_plan_better_than_the_expansion_at_the_float_weights():
    model = network()
    taylor, rounded, policy = around_two_bits(model, "hessian")
    schemes = tuple(dict.fromkeys(candidate.scheme.weight for candidate in rounded.candidates))
    at_float = make_job(4.0, candidates=CandidateOptions(schemes=schemes))
    first = profiled(at_float, model, [(b, torch.zeros(12, dtype=torch.long)) for b in batches()]).taylor
    change = LossChange(Calibration(model, batches(), likelihood=Categorical()), "divergence")

    def measured(plan: BitPolicy) -> float:
        return_to = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for name, rows in rounded.of_policy(plan).items():
                model.get_submodule(name).weight.copy_(rows.dequantize(torch.float64))
        loss = change.measure()
        model.load_state_dict(return_to)
        return loss

    base = measured(policy)
    near = BitPolicy({**policy, "4": rounded.candidates[-1].scheme})
    true = measured(near)
    assert near != policy
    assert abs(base + taylor.predict(near).value - true) < abs(first.predict(near).value - true)


def decided(selection: SelectionOptions, model: nn.Module | None = None, **settings) -> Decision:
    job = make_job(7.0, candidates=NEAREST, curvature=EXACT, repair=NOTHING, selection=selection, **settings)
    return job.decide(network() if model is None else model, data())


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in batches()]


def test_the_plan_of_least_measured_loss_is_kept(monkeypatch):
    monkeypatch.setattr("lightning_mpq.pipeline.policy_selection._STANDARD_ERRORS", 0.0)
    model = network()
    found = decided(SelectionOptions(rounds=0), model)
    judging = hold_out(Calibration(model, data(), likelihood=Categorical())).judging
    change = LossChange(judging, "divergence")
    assert [row.policy for row in found.trials][0] == "solved"
    assert len({str(row.bits) for row in found.trials}) == len(found.trials) >= 3
    kept = [row for row in found.trials if row.kept]
    assert len(kept) == 1
    assert kept[0].measured_loss == min(row.measured_loss for row in found.trials)
    assert kept[0].bits == found.allocation.policy.bits()
    assert found.allocation.predicted_loss == pytest.approx(kept[0].predicted_loss)
    assert found.allocation.costs["average_bits"] <= 7.0
    quantize(model, found.allocation.policy, data(), rounded=found.quantizer.rounded, repair=NOTHING)
    assert change.measure() == pytest.approx(kept[0].measured_loss, rel=1e-4)


def test_disagreement_leads_to_a_round_and_agreement_to_none():
    exact = decided(SelectionOptions(policies=1, rounds=2, trust=1e9))
    assert [row.round for row in exact.trials] == [0]
    doubting = decided(SelectionOptions(policies=1, rounds=2, trust=1.0))
    rounds = [row.round for row in doubting.trials]
    went_on = doubting.trials[1].measured_loss < doubting.trials[0].measured_loss
    assert rounds == list(range(2 + went_on))  # a round that does not pay is the last
    assert [row.policy for row in doubting.trials][1] == "expanded again"
    kept = next(row for row in doubting.trials if row.kept)
    assert kept.round == 0 or kept.measured_loss < doubting.trials[0].measured_loss


def test_luck_on_a_few_samples_is_no_reason_to_leave_the_solved_plan(monkeypatch):
    monkeypatch.setattr("lightning_mpq.pipeline.policy_selection._STANDARD_ERRORS", 1e9)
    found = decided(SelectionOptions(trust=1.0))
    assert len(found.trials) >= 3
    assert [row.policy for row in found.trials if row.kept] == ["solved"]


def misled(monkeypatch) -> None:
    """Let every profile say that errors in the first layer do next to nothing."""

    def wrong(*args, **settings):
        taylor = profile(*args, **settings)
        trusted = torch.tensor([1e-3 if c.group == "0" else 1.0 for c in taylor.candidates], dtype=torch.float64)
        return replace(taylor, curvature=taylor.curvature * trusted[:, None] * trusted)

    monkeypatch.setattr("lightning_mpq.pipeline.profiling.profile", wrong)


@pytest.mark.filterwarnings("ignore:More bits are predicted")
def test_a_policy_that_is_worse_than_one_width_everywhere_is_not_kept(monkeypatch):
    misled(monkeypatch)
    model = mlp(16, 24, 16, 3).double().eval()
    inputs = torch.randn(20, 12, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    samples = [(batch, torch.zeros(12, dtype=torch.long)) for batch in inputs]
    schemes = [WeightScheme(bits) for bits in (2, 3, 4)]
    shapes = [layer.weight.shape for layer in model if isinstance(layer, nn.Linear)]
    stored = sum(schemes[1].stored_bits(*shape) for shape in shapes)
    job = make_job(
        stored / sum(shape.numel() for shape in shapes),
        candidates=CandidateOptions(schemes=schemes),
        curvature=EXACT,
        repair=NOTHING,
        selection=SelectionOptions(policies=3, rounds=0),
    )
    found = job.decide(model, samples)
    solved, kept = found.trials[0], next(row for row in found.trials if row.kept)
    assert (solved.policy, kept.policy) == ("solved", "uniform")
    assert set(found.allocation.policy.bits().values()) == {3}
    assert solved.predicted_loss < kept.predicted_loss
    assert solved.above_kept > 2 * solved.above_kept_error > 0
    change = LossChange(hold_out(Calibration(model, samples, likelihood=Categorical())).judging, "divergence")
    losses = []
    for row in (solved, kept):
        packed = copy.deepcopy(model)
        quantize(packed, BitPolicy({name: WeightScheme(bits) for name, bits in row.bits.items()}), repair=NOTHING)
        losses.append(change.on(packed).measure_each())
    gain, error = losses[0].minus(losses[1])
    assert solved.above_kept == pytest.approx(gain)
    assert solved.above_kept_error == pytest.approx(error)


def test_none_of_the_measured_policies_is_surely_better_than_the_one_that_is_kept():
    """The best is not surely better than the first, by scatter; the second is, by little but for certain."""
    samples = torch.linspace(-1, 1, 64, dtype=torch.float64)
    alike = torch.ones_like(samples)
    losses = {"solved": 1 + 0 * samples, "additive": 0.99 + 1e-3 * samples, "uniform": 0.95 + 5 * samples}
    policies = {name: BitPolicy({"0": WeightScheme(bits)}) for bits, name in enumerate(losses, start=2)}

    class Evaluator:
        def as_profiled(self, policy: BitPolicy) -> Measured:
            name = next(name for name, own in policies.items() if own == policy)
            return Measured(Losses(losses[name], alike), None, ())

    selection = PolicySelection(Evaluator(), (), None, SelectionOptions())
    assert selection._best(list(policies.values())) == 1


def test_paired_differences_have_the_mean_and_the_error_of_a_paired_t_test():
    torch.manual_seed(1)
    one, two, weights = torch.randn(3, 50, dtype=torch.float64)
    alike = torch.ones_like(weights)
    mean, error = Losses(one, alike).minus(Losses(two, alike))
    statistic = ttest_rel(one.numpy(), two.numpy()).statistic
    assert mean == pytest.approx(float((one - two).mean()))
    assert mean / error == pytest.approx(statistic)
    counts = weights.abs().ceil()
    repeated = Losses(one, counts).minus(Losses(two, counts))[0]
    assert repeated == pytest.approx(float((one - two).repeat_interleave(counts.long()).mean()))


def test_the_error_of_batches_is_that_of_as_many_means_and_one_alone_has_none():
    torch.manual_seed(2)
    samples = torch.randn(2000, 8, 32, dtype=torch.float64)  # draws of 8 batches of 32 samples
    found = [Losses(batches, torch.full((8,), 32.0)).minus(Losses(0 * batches, torch.full((8,), 32.0)))
             for batches in samples.mean(2)]  # fmt: skip
    means, errors = (torch.tensor(values, dtype=torch.float64) for values in zip(*found, strict=True))
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(means.std()), rel=0.05)
    skipped = torch.tensor([32.0, 0.0])
    for one, weights in ((torch.tensor([1.0]), torch.tensor([32.0])), (torch.tensor([1.0, 0.0]), skipped)):
        assert Losses(one, weights).minus(Losses(0 * one, weights)) == (1.0, float("inf"))
        assert Losses(one, weights).above(Losses(0 * one, weights)) == (1.0, None)


def test_without_the_loop_nothing_is_measured():
    assert decided(SelectionOptions(policies=1, rounds=0)).trials == ()
    additive = decided(SelectionOptions(policies=3, rounds=0), solver=SolverOptions(objective="additive"))
    assert [row.policy for row in additive.trials] == ["solved", "uniform"]


def test_rounds_work_with_batchnorm_and_sampled_curvature():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    samples = [(batch.float(), labels) for batch, labels in data()]
    statistics = model[1].running_mean.clone()
    curvature = CurvatureOptions(likelihood=Gaussian())
    job = make_job(
        6.5,
        candidates=CandidateOptions(bits=(2, 3, 4)),
        curvature=curvature,
        selection=SelectionOptions(policies=2, rounds=1, trust=1.0),
    )
    outcome = job.run(model, samples, lambda: {})
    assert outcome.report.trials[-1].round == 1
    assert sum(row.kept for row in outcome.report.trials) == 1
    assert not torch.equal(model[1].running_mean, statistics)


@pytest.mark.parametrize("wrong", [{"policies": 0}, {"rounds": -1}, {"trust": 0.5}, {"resamples": -1}])
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="at least (0|1)"):
        SelectionOptions(**wrong)
