"""What inputs are offered, to whom, and what it costs."""

import pytest
import torch
from torch import nn

from lightning_mpq.allocation import Budget, LatencyTable, Rules, allocate
from lightning_mpq.allocation.costs import cost_rows
from lightning_mpq.curvature import TaylorModel
from lightning_mpq.errors import InfeasibleBudgetError
from lightning_mpq.groups.candidates import Candidate, make_candidates, offered_inputs
from lightning_mpq.groups.choices import Choices
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme

TOKENS = InputScheme(8, "token")
WEIGHTS = [WeightScheme(4), WeightScheme(8)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"embed": nn.Embedding(5, 4), "conv": nn.Conv1d(4, 6, 3), "last": nn.Linear(6, 2)})


def schemes_of(candidates: tuple[Candidate, ...], group: str) -> list[str]:
    return [str(candidate.scheme) for candidate in candidates if candidate.group == group]


def test_every_scheme_of_a_weight_has_every_scheme_of_inputs_that_its_layers_can_have():
    candidates = make_candidates(find_groups(network()), schemes=WEIGHTS, inputs=[4, TOKENS, "float"])
    assert schemes_of(candidates, "embed") == ["4-bit symmetric/channel", "8-bit symmetric/channel"]
    assert schemes_of(candidates, "conv") == [
        f"{bits}-bit symmetric/channel{inputs}" for bits in (4, 8) for inputs in ("", ", 4-bit inputs")
    ]
    assert len(schemes_of(candidates, "last")) == 6


def test_a_group_has_what_all_its_layers_can_have():
    groups = find_groups(network(), groups={"both": ["conv", "last"]})
    assert [group.inputs for group in groups] == [(), ("tensor",)]
    assert {c.scheme.input_bits for c in make_candidates(groups, schemes=WEIGHTS, inputs=[8])} == {None, 8}
    assert {c.scheme.input_bits for c in make_candidates(groups, schemes=WEIGHTS, inputs=[TOKENS])} == {None}


def test_ranges_are_stored_for_each_layer():
    groups = find_groups(network(), groups={"both": ["conv", "last"]})
    both = groups[1]
    plain, joint = WEIGHTS[0], LayerScheme(WEIGHTS[0], InputScheme(8))
    assert both.stored_bits(joint) == both.stored_bits(plain) + 2 * 40
    assert both.stored_bits(LayerScheme(plain, TOKENS)) == both.stored_bits(plain)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([3], "bits of inputs must be"),
        (["int8"], "Expected inputs as widths"),
        ([], "No way to treat inputs"),
        (8, "as a list of widths, InputSchemes or 'float', got 8"),
        ("float", "as a list of widths, InputSchemes or 'float', got 'float'"),
        (InputScheme(8), "as a list of widths"),
    ],
)
def test_what_is_no_way_to_treat_inputs_is_refused(inputs, said):
    with pytest.raises(ValueError, match=said):
        offered_inputs(inputs)


def taylor(inputs: list[object]) -> TaylorModel:
    """A model in which errors add up, those of weights and inputs: a quarter for each bit more."""
    groups = tuple(group for group in find_groups(network()) if group.name != "embed")
    candidates = make_candidates(groups, schemes=WEIGHTS, inputs=inputs)
    damage = [
        4.0**-c.scheme.bits + (0 if c.scheme.input_bits is None else 5.0**-c.scheme.input_bits) for c in candidates
    ]
    return TaylorModel(
        groups, candidates, torch.zeros(len(damage)), torch.diag(torch.tensor(damage)), "fisher", "divergence", 1
    )


def test_bit_operations_are_weight_bits_times_input_bits():
    macs = {"conv": 100.0, "last": 10.0}
    model = taylor([4, 8, "float"])
    choices = Choices(model.groups, model.candidates)
    row = next(r for r in cost_rows(choices, Budget(bit_operations=1, macs=macs)) if r.name == "bit_operations")
    for value, candidate in zip(row.values, model.candidates, strict=True):
        assert value == macs[candidate.group] * candidate.scheme.bits * (candidate.scheme.input_bits or 32)
    budget = Budget(bit_operations=1, macs=macs, activation_bits=16)
    assert max(next(r for r in cost_rows(choices, budget) if r.name == "bit_operations").values) == 100 * 8 * 16
    found = allocate(model, Budget(bit_operations=110 * 32, macs=macs))
    assert found.costs["bit_operations"] <= 110 * 32
    best = min(
        (sum(float(model.curvature[i, i]) for i in pair), pair)
        for pair in ((a, b) for a in range(6) for b in range(6, 12))
        if sum(row.values[list(pair)]) <= 110 * 32
    )[1]
    assert model.indices(found.policy) == list(best)


def test_rules_bound_inputs_and_tie_pairs():
    model = taylor([4, 8, "float"])
    budget = Budget(average_bits=100)
    rules = Rules(max_input_bits={"conv": 4}, min_input_bits={"last": 32}, fixed={"last": WeightScheme(4)})
    policy = allocate(model, budget, rules=rules).policy
    assert (policy["conv"].input_bits, policy["last"].input_bits, policy["last"].bits) == (4, None, 4)
    tied = allocate(model, budget, rules=Rules(equal=[("conv", "last")], max_input_bits={"*": 8}, max_bits={"conv": 4}))
    assert {(s.bits, s.input_bits) for s in tied.policy.values()} == {(4, 8)}
    with pytest.raises(
        ValueError, match=r"max_input_bits\['conv'\] = 2 leaves group 'conv' no candidate; .*\[4, 8, 32\]"
    ):
        allocate(model, budget, rules=Rules(max_input_bits={"conv": 2}))


def test_latency_tables_price_pairs():
    model = taylor([4, 8])
    entries = {(g.name, f"W{w}A{a}"): float(w * a) for g in model.groups for w in (4, 8) for a in (4, 8)}
    table = LatencyTable(entries)
    assert allocate(model, Budget(latency=32, latency_table=table)).costs["latency"] == 32
    with pytest.raises(InfeasibleBudgetError):
        allocate(model, Budget(latency=31, latency_table=table))
    del entries["conv", "W4A8"]
    with pytest.raises(ValueError, match="no entry for conv @ 4-bit symmetric/channel, 8-bit inputs.*or one for W4A8"):
        allocate(model, Budget(latency=32, latency_table=LatencyTable(entries)))


def test_a_taylor_model_of_joint_candidates_is_saved_and_read(tmp_path):
    model = taylor([4, "float"])
    again = TaylorModel.load(model.save(tmp_path / "joint.taylor"))
    assert (again.groups, again.candidates) == (model.groups, model.candidates)
