"""Which targets can hold a policy: as `refuse_policy` says, at the bytes that they ask."""

from collections.abc import Sequence

import pytest
from helpers.networks import mlp
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.pipeline.target_rows import target_rows
from lightning_mpq.targets.menu import refuse_policy
from lightning_mpq.targets.registry import TARGETS


def policy_of(net: nn.Module, **schemes: mpq.WeightScheme) -> tuple[mpq.LayerGroups, mpq.BitPolicy]:
    groups = mpq.find_groups(net)
    return groups, mpq.BitPolicy({group.name: schemes[f"layer{group.name}"] for group in groups})


class Npu(mpq.Target):
    name = "npu"

    def ties(self, model: nn.Module) -> Sequence[Sequence[str]]:
        return [["0", "2"]]

    def stored_bits(self, layer: nn.Module, scheme: mpq.WeightScheme) -> int:
        return 2 * super().stored_bits(layer, scheme)


@pytest.mark.parametrize("bits", [(4, 4), (3, 8), (2, 6)])
@pytest.mark.parametrize("grid", ["symmetric", "half"])
def test_every_target_says_what_it_would_refuse(bits, grid):
    net = mlp(6, 8, 3)
    first, second = (mpq.WeightScheme(width, grid=grid) for width in bits)
    groups, policy = policy_of(net, layer0=first, layer2=second)
    rows = target_rows(net, groups, policy, Npu())
    assert [row.target for row in rows] == ["npu", *TARGETS]
    for row, target in zip(rows, (Npu(), *(kind() for kind in TARGETS.values())), strict=True):
        if row.holds:
            refuse_policy(target, net, policy)
            assert (row.obstacles, row.reasons) == (0, ())
            layers = {"0": net[0], "2": net[2]}
            expected = sum(target.stored_bits(layers[name], policy[name].weight) for name in layers)
            assert row.stored_bytes == expected // 8
        else:
            assert row.stored_bytes is None
            assert row.obstacles >= len(row.reasons) > 0
            with pytest.raises(ValueError, match="does not fit the target") as refused:
                refuse_policy(target, net, policy)
            assert all(reason in str(refused.value) for reason in row.reasons)
    assert rows[0].holds == (bits[0] == bits[1])
    assert rows[1].holds  # our own packed layers take everything


def test_the_target_of_the_job_comes_first_and_once():
    net = mlp(6, 8, 3)
    scheme = mpq.WeightScheme(4)
    groups, policy = policy_of(net, layer0=scheme, layer2=scheme)
    rows = target_rows(net, groups, policy, TARGETS["vllm"]())
    assert [row.target for row in rows] == ["vllm", *(name for name in TARGETS if name != "vllm")]
