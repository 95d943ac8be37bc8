"""What a forward pass takes, counted by hand, and budgets that are counted from it."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from helpers.taylor_models import taylor_of
from torch import nn

from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.allocation.workload import Workload
from lightning_mpq.errors import InfeasibleBudgetError
from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import pack_model, stored_bytes, use_kernels
from lightning_mpq.modules.workload import measure_workload, measured


class Cached(nn.Module):
    """Attention-like: returns logits, and keys and values of what it has seen, where its configuration says so."""

    class Config:
        use_cache = False

    def __init__(self):
        super().__init__()
        self.config = self.Config()
        self.embed = nn.Embedding(11, 8)
        self.key = nn.Linear(8, 4, bias=False)
        self.head = nn.Linear(8, 24, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        keys = self.key(x)[:, None]  # [N, heads, T, width]
        found = {"logits": self.head(x)}
        return found | {"past_key_values": ((keys, keys.clone()),)} if self.config.use_cache else found


def test_convolutions_and_grouped_ones_are_counted():
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Flatten())
    work = measure_workload(net, [torch.zeros(3, 4, 8, 8)], find_groups(net))
    assert work.macs == {"0": 6 * 36 * (2 * 9), "1": 6 * 36 * (4 * 4)}


def test_attention_is_counted_by_its_projections():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    work = measure_workload(net, [torch.zeros(3, 5, 8)], find_groups(net))
    assert work.macs["self_attn.in_proj_weight"] == 5 * 24 * 8
    assert work.macs["linear1"] == work.macs["linear2"] == 5 * 16 * 8


def test_everything_grows_with_context_and_batch():
    net = Cached()
    groups = find_groups(net)
    tokens = [torch.zeros(2, 9, dtype=torch.long)]
    work = measure_workload(net, tokens, groups, context=100, batch=4)
    assert work.macs == {"embed": 0.0, "key": 100 * 8 * 4, "head": 100 * 8 * 24}
    assert work.cache_bytes == 2 * 4 * 4 * 100 * 4  # keys and values, samples, columns, positions, bytes
    assert work.activation_bytes == 4 * 4 * 100 * (8 + 24) + 4 * 8 * 24
    assert net.config.use_cache is False
    short = measure_workload(net, tokens, groups, batch=2)
    assert short.cache_bytes == 2 * 2 * 4 * 9 * 4
    with pytest.raises(ValueError, match="hold no sequences that could be cut"):
        measure_workload(nn.Sequential(nn.Linear(1, 1)), [torch.zeros(4, 1)], [], context=8)
    with pytest.raises(ValueError, match="there is no batch"):
        measure_workload(net, [], groups)


def test_a_short_piece_tells_what_a_language_model_takes_at_a_context():
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}
    net = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    ).eval()
    groups = find_groups(net)

    def tokens(samples, positions):
        return [{"input_ids": torch.zeros(samples, positions, dtype=torch.long)}]

    told = measure_workload(net, tokens(2, 21), groups, context=90, batch=3)
    assert told == measure_workload(net, tokens(3, 90), groups, batch=3)
    assert told.cache_bytes == 2 * 2 * 3 * 2 * 8 * 90 * 4  # layers, keys and values, samples, heads, columns, positions


@pytest.mark.parametrize("bits", [4, 8])
def test_what_a_kernel_keeps_is_what_it_then_keeps(bits):
    def network():
        return nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64)).bfloat16()

    net = network()
    groups = find_groups(net)
    candidates = make_candidates(groups, [bits], rounding="nearest", granularities=[32], grids=["symmetric"])
    inputs = [torch.zeros(2, 64).bfloat16()]
    work = measure_workload(net, inputs, groups, candidates=candidates, kernel="torch-int8")
    taylor = taylor_of(groups, candidates)
    plan = allocate(taylor, Budget(device_bytes=1e6, kernel="torch-int8", workload=work))
    pack_model(net, plan.policy)
    with pytest.warns(UserWarning, match="torch-int8") if bits == 4 else nullcontext():
        choices = use_kernels(net, "torch-int8")
    for group in groups:
        kept = [value for (name, _), value in work.kernel_bytes.items() if name == group.name]
        assert sum(kept) == choices[group.name].bytes
    assert plan.costs["device_bytes"] - work.activation_bytes == stored_bytes(net).total + choices.bytes


def test_device_bytes_are_kept_and_recounted():
    net = Cached()
    groups = find_groups(net)
    candidates = make_candidates(groups, [2, 4, 8], rounding="nearest", grids=["half"])
    taylor = taylor_of(groups, candidates)
    tokens = [torch.zeros(2, 9, dtype=torch.long)]
    budget = Budget(device_bytes=1e9, context=50)
    with pytest.raises(ValueError, match="counted from a forward pass: measure one"):
        allocate(taylor, budget)
    budget = measured(budget, net, tokens, groups, candidates)
    work = budget.workload
    assert work is not None
    widest = allocate(taylor, budget)
    pack_model(net, widest.policy)
    assert widest.costs["device_bytes"] == stored_bytes(net).total + work.activation_bytes + work.cache_bytes
    less = allocate(taylor, replace(budget, device_bytes=widest.costs["device_bytes"] - 1))
    assert less.costs["device_bytes"] < widest.costs["device_bytes"]
    assert measured(budget, net, [], groups) is budget
    with pytest.raises(InfeasibleBudgetError, match="whatever the bits"):
        allocate(taylor, replace(budget, device_bytes=work.cache_bytes))


def test_operations_are_counted_where_no_counts_are_given():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    groups = find_groups(net)
    candidates = make_candidates(groups, [2, 4, 8], rounding="nearest", grids=["half"])
    budget = measured(Budget(mac_average_bits=4), net, [torch.zeros(5, 8)], groups)
    plan = allocate(taylor_of(groups, candidates), budget)
    bits = plan.policy.bits()
    assert plan.costs["mac_average_bits"] == (bits["0"] * 128 + bits["2"] * 64) / 192 <= 4
    assert plan.costs["bit_operations"] == 8 * (bits["0"] * 128 + bits["2"] * 64)


def test_layers_whose_calls_are_not_seen_need_counts():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return nn.functional.linear(x, self.layer.weight)

    net = Functional()
    groups = find_groups(net)
    candidates = make_candidates(groups, [2, 4], rounding="nearest", grids=["half"])
    budget = measured(Budget(bit_operations=1e9), net, [torch.zeros(2, 4)], groups)
    with pytest.raises(ValueError, match="could not be seen in a forward pass"):
        allocate(taylor_of(groups, candidates), budget)


def test_a_workload_is_checked():
    with pytest.raises(ValueError, match="workload of cache_bytes must be a number"):
        Workload(cache_bytes=-1.0)
    with pytest.raises(ValueError, match="workload of a @ b"):
        Workload(kernel_bytes={("a", "b"): float("nan")})
