"""Rounding all candidates of a model in one pass: against each layer on its own, and leaving no trace."""

from math import ceil

import pytest
import torch
from helpers.profiles import nearest_candidates
from helpers.state import state_of
from torch import Tensor, nn

from lightning_mpq.errors import NonFiniteError
from lightning_mpq.groups.candidates import make_candidates, offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import pack_model
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.layer_kinds import rows_to_weight, weight_rows
from lightning_mpq.network.named_weights import named_layers
from lightning_mpq.policy import BitPolicy
from lightning_mpq.quantizers import InputMoment, quantize_rows, round_rows
from lightning_mpq.rounding import group_rounding, independent
from lightning_mpq.rounding.independent import round_candidates, round_policy
from lightning_mpq.rounding.input_moments import input_moments
from lightning_mpq.schemes import WeightScheme


class Net(nn.Module):
    """Embedding tied to the output, a depthwise and a transposed convolution, a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.embedding = nn.Embedding(11, 6)
        self.depthwise = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.up = nn.ConvTranspose1d(6, 6, 2, stride=2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 11)
        self.head.weight = self.embedding.weight
        self.unused = nn.Linear(3, 2)

    def forward(self, tokens):
        self.calls += 1
        hidden = self.embedding(tokens).mT
        hidden = self.drop(self.up(torch.relu(self.depthwise(hidden))))
        return self.head(hidden.mT)


def network() -> Net:
    torch.manual_seed(0)
    return Net()


def batches(count: int = 3) -> list[torch.Tensor]:
    return [torch.randint(11, (8, 5), generator=torch.Generator().manual_seed(i)) for i in range(count)]


def test_one_pass_in_eval_mode_measures_what_every_layer_gets():
    model, data = network().train(), batches()
    layers = {name: getattr(model, name) for name in ("embedding", "depthwise", "up", "head", "unused")}
    moments = input_moments(Calibration(model, data), layers)
    assert model.calls == 3 + 3  # the second time to say why nothing was seen of one
    model.eval()
    with torch.no_grad():
        hidden = model.embedding(torch.cat(data)).mT
        inner = torch.relu(model.depthwise(hidden))
        last = model.up(inner).mT.flatten(0, 1).double()
    up = moments[id(model.up.weight)].matrix()[0]
    windows = torch.stack([inner, torch.zeros_like(inner)], -1).flatten(-2)  # zeros between, for a stride of 2
    even, odd = windows, windows.roll(1, -1)
    columns = torch.stack([even, odd], 2).flatten(1, 2).mT.flatten(0, 1).double()
    torch.testing.assert_close(up, columns.T @ columns / len(columns), rtol=1e-5, atol=1e-7)
    tied = moments[id(model.head.weight)]
    expected = last.T @ last + torch.eye(6).double() * torch.cat(data).numel() / 11
    torch.testing.assert_close(tied.matrix()[0] * tied.count, expected, rtol=1e-5, atol=1e-6)
    assert not moments[id(model.unused.weight)].matrix().any()


def test_the_model_and_the_random_state_are_as_they_were():
    model = network().train()
    model.drop.eval()
    before = state_of(model)
    groups, state = find_groups(model), torch.get_rng_state()
    round_candidates(model, batches(), groups, make_candidates(groups, schemes=offered_schemes([2])))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.drop.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_gone_after_a_batch_that_fails():
    model = network()
    groups = find_groups(model)
    offered = make_candidates(groups, schemes=offered_schemes([2]))
    with pytest.raises(TypeError, match="batch 2"):
        round_candidates(model, [batches()[0], torch.randn(2, 2)], groups, offered)
    assert not any(module._forward_hooks for module in model.modules())


def test_each_layer_is_rounded_as_on_its_own():
    model, data = network(), batches()
    groups = find_groups(model)
    offered = make_candidates(groups, schemes=offered_schemes([2, 3], granularities=["channel", 4], grids=["half"]))
    rounded = round_candidates(model, data, groups, offered)
    assert rounded.candidates == offered
    layers = {layer: getattr(model, layer) for group in groups for layer in group.layers}
    moments = input_moments(Calibration(model, data), layers)
    for group in groups:
        schemes = [candidate.scheme.weight for candidate in offered if candidate.group == group.name]
        for layer in group.layers:
            module = layers[layer]
            moment = moments[id(module.weight)]
            results = round_rows(weight_rows(module), moment.matrix(), schemes, moment.row_counts, moment.damping())
            for scheme, expected in zip(schemes, results, strict=True):
                assert torch.equal(rounded.of_layer(layer, scheme).codes, expected.quantized.codes)
                assert torch.equal(rounded.of_layer(layer, scheme).scale, expected.quantized.scale)


def test_layers_whose_moments_do_not_fit_together_take_passes_of_their_own(monkeypatch):
    model, data = network(), batches()
    groups = find_groups(model)
    offered = make_candidates(groups, bits=[2, 4])
    whole = round_candidates(model, data, groups, offered)
    passes = []
    monkeypatch.setattr(independent, "moment_room", lambda layers: 0)
    measured = group_rounding.input_moments
    monkeypatch.setattr(group_rounding, "input_moments", lambda *args: passes.append(list(args[1])) or measured(*args))
    parts = round_candidates(model, data, groups, offered)
    assert parts.candidates == whole.candidates
    assert parts.fingerprint == whole.fingerprint
    assert parts.errors == whole.errors
    assert passes == [list(group.layers) for group in groups]


def test_tied_layers_share_their_codes_in_memory():
    model = network()
    groups = find_groups(model)
    scheme = offered_schemes([4], grids=["half"])[0]
    rounded = round_candidates(model, batches(), groups, make_candidates(groups, schemes=[scheme]))
    assert rounded.rows["embedding", scheme] is rounded.rows["head", scheme]
    rows = [weight_rows(getattr(model, name)) for name in ("embedding", "depthwise", "up", "unused")]
    assert rounded.stored_bytes == sum(4 * ceil(row.numel() / 8) + 2 * row.shape[0] for row in rows)  # 2 a scale


def test_the_error_is_the_relative_change_of_the_layers_output():
    model, data = network().eval(), batches()
    groups = find_groups(model)
    scheme = offered_schemes([3], grids=["asymmetric"])[0]
    rounded = round_candidates(model, data, groups, make_candidates(groups, schemes=[scheme]))
    with torch.no_grad():
        inputs = torch.relu(model.depthwise(model.embedding(torch.cat(data)).mT)).double()
        up = model.up.double()
        quantized = rounded.of_layer("up", scheme).dequantize(torch.float64)
        change = nn.functional.conv_transpose1d(
            inputs, rows_to_weight(up, quantized, up.weight.shape) - up.weight, stride=2
        )
        output = nn.functional.conv_transpose1d(inputs, up.weight, stride=2)
    expected = change.square().sum() / output.square().sum()
    assert rounded.errors["up", scheme] == pytest.approx(float(expected), rel=1e-4)


def test_the_best_grid_is_found_for_each_group_and_width():
    model, data = network(), batches()
    groups = find_groups(model)
    offered = make_candidates(groups, schemes=offered_schemes([2, 3, 8]))
    every = round_candidates(model, data, groups, offered, best_grid=False)
    best = round_candidates(model, data, groups, offered)
    assert every.candidates == offered
    assert [(c.group, c.scheme.bits) for c in best.candidates] == [(g.name, b) for g in groups for b in (2, 3, 8)]
    for candidate in best.candidates:
        layer = next(group for group in groups if group.name == candidate.group).layers[0]
        own = best.errors[layer, candidate.scheme.weight]
        for other in offered:
            if (other.group, other.scheme.bits) == (candidate.group, candidate.scheme.bits):
                error = every.errors[layer, other.scheme.weight]
                if other.stored_bits <= candidate.stored_bits:
                    assert own <= error
                else:  # a grid that costs more has to be better by more than the bits would give elsewhere
                    weight = model.get_submodule(layer).weight.numel()
                    assert own <= error * 4 ** ((other.stored_bits - candidate.stored_bits) / weight)


def test_packing_what_was_rounded_gives_those_weights():
    model, data = network(), batches()
    groups = find_groups(model)
    rounded = round_candidates(model, data, groups, make_candidates(groups, schemes=offered_schemes([2, 3])))
    chosen = [candidate for candidate in rounded.candidates if candidate.scheme.bits == 3]
    policy = BitPolicy({c.group: c.scheme for c in chosen}, {g.name: g.layers for g in groups})
    by_policy = round_policy(Calibration(model, data), policy)
    floats = pack_model(model, policy, rounded.of_policy(policy))
    for layer, scheme in policy.weights().items():
        rows = weight_rows(floats[layer], model.get_submodule(layer).weight)
        assert torch.equal(rows, rounded.of_layer(layer, scheme).dequantize())
        assert torch.equal(by_policy[layer].codes, rounded.of_layer(layer, scheme).codes)


def test_schemes_that_need_no_inputs_need_no_batches():
    model = network()
    groups = find_groups(model)
    rounded = round_candidates(model, [], groups, nearest_candidates(groups, bits=[3]))
    assert model.calls == 0
    for candidate in rounded.candidates:
        group = next(group for group in groups if group.name == candidate.group)
        expected = quantize_rows(weight_rows(model.get_submodule(group.layers[0])), candidate.scheme.weight)
        assert torch.equal(rounded.of_layer(group.layers[0], candidate.scheme.weight).scale, expected.scale)
        assert torch.equal(rounded.of_layer(group.layers[0], candidate.scheme.weight).codes, expected.codes)


def test_second_order_rounding_lowers_the_loss_of_a_trained_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    inputs = torch.randn(512, 8) @ torch.randn(8, 8)
    with torch.no_grad():
        target = model(inputs)
    groups = find_groups(model)
    change = {}
    for rounding in ("nearest", "second_order"):
        schemes = [WeightScheme(3)] if rounding == "nearest" else offered_schemes([3])
        rounded = round_candidates(model, inputs[:256].split(64), groups, make_candidates(groups, schemes=schemes))
        policy = BitPolicy({c.group: c.scheme for c in rounded.candidates})
        twin = nn.Sequential(*model)
        pack_model(twin, policy, rounded.of_policy(policy))
        with torch.no_grad():
            change[rounding] = float((twin(inputs[256:]) - target[256:]).square().mean())
    assert change["second_order"] < 0.25 * change["nearest"]


def test_fingerprints_tell_roundings_apart():
    model, data = network(), batches()
    groups = find_groups(model)
    offered = make_candidates(groups, schemes=offered_schemes([2], grids=["half"]))
    first, again = (round_candidates(model, data, groups, offered) for _ in range(2))
    other = round_candidates(model, data[:1], groups, offered)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_what_cannot_be_is_said_in_a_sentence():
    model = network()
    groups = find_groups(model)
    offered = make_candidates(groups, schemes=offered_schemes([2]))
    with pytest.raises(ValueError, match="at least one calibration batch"):
        round_candidates(model, [], groups, offered)
    with pytest.raises(ValueError, match="has no layer 'embedding'"):
        round_candidates(nn.Linear(2, 2), [], groups, offered)
    with pytest.raises(ValueError, match="was not rounded to"):
        round_candidates(model, batches(), groups, offered).of_layer("up", WeightScheme(7))
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(NonFiniteError, match="inputs of the layer '0' are NaN or infinite in batch 2"):
        input_moments(Calibration(net, [torch.ones(3, 2), torch.full((3, 2), torch.inf)]), {"0": net[0]})
    with torch.no_grad():
        model.up.weight[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        round_candidates(model, batches(), groups, offered)


def mean_product(x):
    """Return the mean of x x^T over all but the last dimension, in float64."""
    x = x.detach().reshape(-1, x.shape[-1]).double()
    return x.T @ x / len(x)


class Recurrent(nn.Module):
    """Two recurrent layers in a stack, one both ways, a cell, attention to a memory, and a layer nobody knows."""

    def __init__(self):
        super().__init__()
        self.stack = nn.GRU(4, 3, num_layers=2)
        self.both = nn.LSTM(3, 2, bidirectional=True, batch_first=True)
        self.cell = nn.RNNCell(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        y, _ = self.both(self.stack(x.transpose(0, 1))[0].transpose(0, 1))
        state = self.cell(x[:, 0])
        self.seen = {"stack": x, "both": self.stack(x.transpose(0, 1))[0], "outputs": y, "state": state, "query": y}
        self.cell(x[:, 1], state)
        return self.attention(y, x, x)[0]


def test_inputs_of_attention_and_recurrent_weights_are_those_they_are_multiplied_with():
    torch.manual_seed(0)
    model, x = Recurrent().eval(), torch.randn(6, 5, 4)
    layers = {name: m for name, m in named_layers(model).items() if isinstance(getattr(m, "weight", None), Tensor)}
    with pytest.warns(UserWarning, match=r"within their modules.*: stack\.weight_hh_l0, stack\.weight_ih_l1\. "):
        moments = input_moments(Calibration(model, [x]), layers)
    found = {name: moments[id(layer.weight)].matrix() for name, layer in layers.items() if id(layer.weight) in moments}
    y = model.seen["outputs"]
    query, memory = mean_product(y), mean_product(x)
    expected = {
        "attention.in_proj_weight": torch.stack([query, memory, memory]),
        "stack.weight_ih_l0": memory[None],
        "stack.weight_hh_l1": mean_product(model.seen["both"][:-1])[None],
        "both.weight_ih_l0_reverse": mean_product(model.seen["both"])[None],
        "both.weight_hh_l0": mean_product(y[:, :-1, :2])[None],
        "both.weight_hh_l0_reverse": mean_product(y[:, 1:, 2:])[None],
        "cell.weight_ih": mean_product(x[:, :2])[None],
        "cell.weight_hh": mean_product(model.seen["state"])[None],
    }
    for name, matrix in expected.items():
        torch.testing.assert_close(found[name], matrix, rtol=1e-5, atol=1e-6)
    # what leaves attention is its output projection of what that is multiplied with
    projection = model.attention.out_proj.weight.double()
    shifted = mean_product(model(x) - model.attention.out_proj.bias)
    torch.testing.assert_close(
        projection @ found["attention.out_proj"][0] @ projection.T, shifted, rtol=1e-4, atol=1e-6
    )


class SharedInputs(nn.Module):
    """Three layers get one tensor; it is changed in place before the last gets it again."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x):
        hidden = x + 1
        found = [self.query(hidden).sum(1), self.key(hidden).sum(1)]
        hidden *= 2
        return sum(found) + self.value(hidden).sum(1)


def test_layers_with_the_same_inputs_share_one_product_and_no_more(monkeypatch):
    model, data, products = SharedInputs(), torch.randn(20, 4).split(5), []
    update = InputMoment.update
    monkeypatch.setattr(InputMoment, "update", lambda *args, **how: products.append(1) or update(*args, **how))
    layers = dict(model.named_children())
    moments = input_moments(Calibration(model, data), layers)
    assert len(products) == 2 * 4
    inputs = torch.cat(data) + 1
    for name, factor in (("query", 1), ("key", 1), ("value", 4)):
        found = moments[id(layers[name].weight)]
        torch.testing.assert_close(found.matrix()[0], factor * mean_product(inputs), rtol=1e-5, atol=1e-6)
        assert found.count == 20
