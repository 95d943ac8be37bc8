"""Two processes round, repair and quantize as one does on all batches, and go on where they were killed."""

import pytest
import torch
from helpers.jobs import make_job
from helpers.state import state_of
from helpers.two_processes import batches, network, own
from torch import nn

from lightning_mpq.allocation import Budget, CustomCost
from lightning_mpq.allocation.explanation import explain
from lightning_mpq.groups.candidates import make_candidates, offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import pack_model, packed_layers
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.network.loss_change import LossChange
from lightning_mpq.options import CurvatureOptions, RepairOptions
from lightning_mpq.pipeline.kept_sequence import KeptSequence
from lightning_mpq.policy import BitPolicy
from lightning_mpq.repair.batchnorm import measure_batchnorm, reestimate_batchnorm
from lightning_mpq.repair.biases import correct_biases
from lightning_mpq.repair.output_means import output_means
from lightning_mpq.rounding.independent import round_candidates
from lightning_mpq.rounding.sequential import round_sequentially
from lightning_mpq.tools import distributed


def rounded_and_repaired():
    """Round, quantize and repair on this rank's batches; return codes and repaired tensors."""
    items = own(batches())
    model = network()
    groups = find_groups(model)
    rounded = round_candidates(model, items, groups, make_candidates(groups, schemes=offered_schemes([3])))
    policy = BitPolicy({c.group: c.scheme for c in rounded.candidates}, {g.name: g.layers for g in groups})
    by_order = round_sequentially(model, items, policy)
    codes = [rows.codes for rows in rounded.of_policy(policy).values()] + [r.codes for r in by_order.values()]
    change = LossChange(Calibration(model, items, likelihood=Categorical()), "divergence")
    means = output_means(model, items)
    before = measure_batchnorm(model, items)
    pack_model(model, policy, rounded.of_policy(policy))
    frozen = change.measure()
    correct_biases(model, items, means)
    biases = [layer.bias.detach().clone() for layer in (model[0], model[3], model[6])]
    reestimate_batchnorm(model, items, before=before)
    statistics = [value.clone() for index in (1, 4) for value in model[index].buffers()]
    return codes, [*biases, *statistics, *[s for b in before.values() for s in b]], [frozen, change.measure()]


def test_two_processes_round_and_repair_as_one_does(pool):
    first, second = pool.run(rounded_and_repaired)
    codes, repaired, changes = rounded_and_repaired()
    for one, other, single in zip(first[0], second[0], codes, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, single)
    for one, other, single in zip(first[1], second[1], repaired, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, single, rtol=1e-5, atol=1e-6)
    assert first[2] == second[2]
    assert first[2] == pytest.approx(changes, rel=1e-4)
    assert changes[0] > 0


class OneMoreLayer(KeptSequence):
    """Dies after each new layer."""

    def keep(self, layer, found):
        super().keep(layer, found)
        raise RuntimeError(f"killed after {layer}")


def rounded_a_layer_at_a_time(folder):
    """Round in sequence on this rank's batches, with a death after every layer; return those layers, and the codes."""
    items, model, killed = own(batches()), network(), []
    policy = BitPolicy({g.name: offered_schemes([3])[0] for g in find_groups(model)})
    while True:
        try:
            kept = OneMoreLayer(folder, Calibration(model, items))
            found = round_sequentially(model, items, policy, kept=kept)
            return killed, [rows.codes for rows in found.values()]
        except RuntimeError as error:
            killed.append(str(error))


def test_two_processes_that_were_killed_go_on_at_the_same_layer(pool, tmp_path):
    first, second = pool.run(rounded_a_layer_at_a_time, tmp_path)
    assert first[0] == second[0] == [f"killed after {layer}" for layer in ("0", "3", "6")]
    model = network()
    policy = BitPolicy({g.name: offered_schemes([3])[0] for g in find_groups(model)})
    whole = round_sequentially(model, batches(), policy)
    for one, other, single in zip(first[1], second[1], whole.values(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, single.codes)


def synchronised_statistics():
    """Re-estimate SyncBatchNorm layers, which exchange statistics in every pass if they are let."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    reestimate_batchnorm(model, own(batches()))
    assert "forward" not in vars(model[1])
    return [buffer.clone() for buffer in model.buffers()]


def test_synchronised_batchnorm_is_measured_with_uneven_numbers_of_batches(pool):
    for found in pool.run(synchronised_statistics):
        for value, single in zip(found, synchronised_statistics(), strict=True):
            torch.testing.assert_close(value, single, rtol=1e-5, atol=1e-6)


def whole_job():
    """Run the pipeline with buffers that differ from rank to rank, which must not matter."""
    model = network()
    if distributed.rank():
        model[1].running_mean += 1
    seen = []

    def evaluate():
        seen.append(len(packed_layers(model)))
        return {"rank": float(distributed.rank())}

    budget = Budget(average_bits=4.5, custom=(CustomCost("layers", lambda group, scheme: 1.0),))
    repair = RepairOptions(sequential=False)  # what judges it is halved otherwise where something is held out
    pipeline = make_job(budget, curvature=CurvatureOptions(likelihood=Categorical()), repair=repair)
    outcome = pipeline.run(model, own(batches(10)), evaluate)
    state = state_of(model)
    report = outcome.report
    return (
        outcome.allocation.policy.to_json(),
        state,
        [row.measured_loss for row in report.models],
        report.samples,
        [row.metrics["rank"] for row in report.models],
        str(explain(outcome.allocation)),
        len(seen),
    )


def test_two_processes_quantize_as_one_does(pool):
    first, second = pool.run(whole_job)
    policy, state, losses, samples, _, explained, evaluated = whole_job()
    assert first[0] == second[0] == policy
    assert first[1].keys() == second[1].keys() == state.keys()
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name]), name
        torch.testing.assert_close(value, state[name], rtol=1e-5, atol=1e-6, msg=name)
    assert first[2] == second[2]
    assert first[2] == pytest.approx(losses, rel=1e-3, abs=1e-6)
    assert first[3] == second[3] == samples
    assert first[4] == second[4] == [0.5] * len(losses)  # the mean over ranks
    assert first[5] == second[5]
    assert explained
    assert first[6] == second[6] == evaluated
