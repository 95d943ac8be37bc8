"""Bias correction against closed forms, and its gain on a network without BatchNorm."""

import copy

import pytest
import torch
from helpers.padded_tokens import one_by_one as sequences
from helpers.padded_tokens import padded, tagger
from helpers.state import state_of
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import pack_model
from lightning_mpq.policy import BitPolicy
from lightning_mpq.repair.biases import correct_biases
from lightning_mpq.repair.output_means import output_means
from lightning_mpq.schemes import WeightScheme


class Net(nn.Module):
    """Convolutions, a layer without bias, one that is called twice, and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.norm = nn.LayerNorm(4)
        self.plain = nn.Linear(4, 4, bias=False)
        self.twice = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, images):
        hidden = torch.relu(self.up(torch.relu(self.conv(images)))).flatten(2).mT
        hidden = self.plain(self.norm(hidden))
        return self.head(self.drop(torch.relu(self.twice(torch.relu(self.twice(hidden))))))


def network() -> Net:
    torch.manual_seed(0)
    return Net()


def batches(count: int = 3) -> list[torch.Tensor]:
    return [torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(i)) + 0.5 for i in range(count)]


def quantize(model: nn.Module, bits: int = 2) -> dict[str, nn.Module]:
    groups = find_groups(model)
    scheme = WeightScheme(bits, grid="half")
    return pack_model(model, BitPolicy({g.name: scheme for g in groups}, {g.name: g.layers for g in groups}))


def test_one_linear_layer_is_shifted_by_what_its_weight_error_does_to_the_mean_input():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 4)).double(), torch.randn(50, 6).double() + 1
    means = output_means(model, data.split(20))  # the last batch is smaller and counts less
    weight, bias = model[0].weight.clone(), model[0].bias.clone()
    quantize(model)
    shift = (weight - model[0].weight) @ data.mean(0)
    done = correct_biases(model, data.split(20), means)
    torch.testing.assert_close(model[0].bias, bias + shift)
    torch.testing.assert_close(done.shifts["0"], shift)


@pytest.mark.parametrize("shape", [(4, 30, 6), (4, 5, 6, 6), (120, 6)], ids=["tokens", "grids of tokens", "vectors"])
def test_a_few_tokens_with_enormous_outputs_and_errors_do_not_shift_all_others(shape):
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 8)).double(), torch.randn(shape).double()
    data.view(-1, 6)[::30] *= 1000
    batches = data.split(len(data) // 2)
    means, bias = output_means(model, batches), model[0].bias.clone()
    with torch.no_grad():
        model[0].weight += 0.01 * torch.randn_like(model[0].weight)  # large outputs are wrong by 10 and more
        model[0].bias += 0.3
    correct_biases(model, batches, means)
    torch.testing.assert_close(model[0].bias, bias, rtol=0, atol=0.02)


def test_where_most_outputs_are_zero_all_tokens_count():
    model, data = nn.Sequential(nn.Linear(2, 2, bias=True)).double(), torch.zeros(9, 2).double()
    data[:2] = torch.randn(2, 2).double()
    nn.init.zeros_(model[0].bias)
    torch.testing.assert_close(output_means(model, [data]).means["0"], model(data).mean(0).detach())


def test_afterwards_every_mean_is_that_of_the_float_model():
    model, data = network().eval(), torch.cat(batches())
    means = output_means(model, batches())
    with torch.no_grad():
        conv = model.conv(data)
        up = model.up(torch.relu(conv))
    torch.testing.assert_close(means.means["conv"], conv.double().mean((0, 2, 3)))
    torch.testing.assert_close(means.means["up"], up.double().mean((0, 2, 3)))
    assert list(means.means) == ["conv", "up", "twice", "head"]
    assert means.irregular == {"twice"}
    quantize(model)
    quantized = output_means(model, batches(), list(means.means)).means
    correct_biases(model, batches(), means)
    corrected = output_means(model, batches(), list(means.means)).means
    for name in ("conv", "up", "head"):
        assert not torch.allclose(quantized[name], means.means[name], atol=1e-3)
        torch.testing.assert_close(corrected[name], means.means[name], rtol=0, atol=1e-6)


def one_by_one(model: nn.Module, data: list[torch.Tensor], means) -> None:
    """Correct each layer by a measurement of its own, with nothing but plain passes."""
    for name, mean in means.means.items():
        now = output_means(model, data, [name]).means[name]
        with torch.no_grad():
            model.get_submodule(name).bias += (mean - now).to(torch.float32)


class Attentive(nn.Module):
    """Encoder layers as torch has them, which call neither projection of attention; one layer of two is passed by."""

    def __init__(self, experts: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv2d(2, 8, 2, stride=2)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True)
        self.even, self.odd = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        self.experts = experts

    def forward(self, images):
        hidden = self.encoder(self.embed(images).flatten(2).mT).mean(1)
        to_even = images.mean() > 0.5 or not self.experts
        return self.head(torch.relu(self.even(hidden) if to_even else self.odd(hidden)))


@pytest.mark.parametrize("make", [Net, Attentive, lambda: Attentive(experts=True)])
def test_passes_that_wait_find_what_a_pass_for_each_layer_does(make):
    torch.manual_seed(0)
    model = make()
    means = output_means(model, batches(6))
    quantize(model)
    twin = copy.deepcopy(model)
    one_by_one(twin, batches(6), means)
    done = correct_biases(model, batches(6), means)
    assert len(done.shifts) >= 4
    for name, bias in twin.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), bias, rtol=0, atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_output_projection_of_attention_is_corrected_by_what_attention_returns():
    model, data = Attentive().eval(), torch.cat(batches())
    means = output_means(model, batches())
    assert list(means.means) == ["embed", "encoder.self_attn.out_proj", "encoder.linear1", "encoder.linear2", *ENDS]
    assert means.irregular == set()

    def mean_of_attention() -> torch.Tensor:
        with torch.no_grad():
            tokens = model.encoder.norm1(model.embed(data).flatten(2).mT)
            return model.encoder.self_attn(tokens, tokens, tokens)[0].mean((0, 1)).double()

    wanted = mean_of_attention()
    quantize(model)
    assert not torch.allclose(mean_of_attention(), wanted, atol=1e-3)
    correct_biases(model, batches(), means)
    torch.testing.assert_close(mean_of_attention(), wanted, rtol=0, atol=1e-6)


ENDS = ("even", "head")


def test_one_pass_does_for_all_layers_and_one_more_for_each_that_is_called_several_times():
    model, calls = Attentive(), []
    model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    means = output_means(model, batches())
    quantize(model)
    calls.clear()
    correct_biases(model, batches(), means)
    assert calls == [5] * 3
    model = network()
    model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    means = output_means(model, batches())
    calls.clear()
    correct_biases(model, batches(), means)
    assert calls == [5] * 3 * 3  # conv and up; twice; head


def test_layers_that_some_batches_pass_by_or_reverse_are_told_from_others():
    model = Attentive(experts=True)
    data = [batches()[0] + 1, batches()[1] - 1]
    assert output_means(model, data).irregular == {"even", "odd"}
    assert output_means(model, data[:1]).irregular == set()


def test_what_is_skipped_is_said():
    model = network()
    model.head.bias = nn.Parameter(torch.zeros(3))
    model.twin = nn.Linear(4, 3)
    model.twin.bias = model.head.bias
    means = output_means(model, batches())
    quantize(model)
    done = correct_biases(model, batches(), means)
    assert done.skipped == {
        "plain": "it has no bias",
        "unused": "it is never called",
        "head": "it shares its bias with another layer",
        "twin": "it shares its bias with another layer",
    }
    assert model.plain.bias is None
    assert set(done.shifts) == {"conv", "up", "twice"}


def test_the_model_is_as_it_was_but_for_its_biases_and_undo_brings_these_back():
    model = network().train()
    means = output_means(model, batches())
    parameters = dict(model.named_parameters())
    quantize(model)
    before = state_of(model)
    state = torch.get_rng_state()
    done = correct_biases(model, batches(), means)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"conv.bias", "up.bias", "twice.bias", "head.bias"}
    assert model.conv.bias is parameters["conv.bias"]
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())
    done.undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_failing_batch_leaves_the_biases_as_they_were():
    model = network()
    means = output_means(model, batches())
    quantize(model)
    before = state_of(model)
    calls = []

    def forward(model, batch):
        calls.append(batch)
        if len(calls) > 4:  # the second layer's turn
            raise RuntimeError("the disk is gone")
        return model(batch)

    with pytest.raises(RuntimeError, match="the disk is gone"):
        correct_biases(model, batches(), means, forward_fn=forward)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_batch_and_no_such_layer_are_sentences():
    model = network()
    with pytest.raises(ValueError, match="at least one calibration batch"):
        output_means(model, [])
    with pytest.raises(ValueError, match="has no layer 'nothing'"):
        output_means(model, batches(), ["nothing"])
    means = output_means(model, batches())
    with pytest.raises(ValueError, match="at least one calibration batch"):
        correct_biases(model, [], means)
    model.head = nn.Identity()
    with pytest.raises(ValueError, match="Layer 'head' had a bias"):
        correct_biases(model, batches(), means)


class Encoder(nn.Module):
    """A transformer block with LayerNorm over the rows of 8x8 images, written out so that all layers are found."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.first, self.second, self.last = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 10)
        self.position = nn.Parameter(0.1 * torch.randn(8, 16))

    def forward(self, images):
        hidden = self.embed(images) + self.position
        q, k, v = self.qkv(self.first(hidden)).chunk(3, -1)
        hidden = hidden + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        hidden = hidden + self.mlp(self.second(hidden))
        return self.head(self.last(hidden).mean(1))


def test_a_trained_transformer_comes_closer_to_its_float_model_on_held_out_data():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images, labels = torch.tensor(digits.images).float() / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    model = Encoder()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(15):
        for batch in torch.randperm(1200).split(150):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    calibration, held_out = images[:256].split(64), images[1200:]
    with torch.no_grad():
        reference = model(held_out).log_softmax(1)
        assert reference.argmax(1).eq(labels[1200:]).float().mean() > 0.8
        means = output_means(model, calibration)
        divergences = []
        for bits in (2, 3):
            floats = quantize(model, bits)
            before = model(held_out).log_softmax(1)
            done = correct_biases(model, calibration, means)
            after = model(held_out).log_softmax(1)
            done.undo()
            for name, layer in floats.items():
                model.set_submodule(name, layer)
            divergences += [[(reference.exp() * (reference - x)).sum(1).mean() for x in (before, after)]]
    print([[round(float(v), 4) for v in pair] for pair in divergences])
    for before, after in divergences:
        assert after < 0.8 * before


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("irregular", [False, True])
def test_tokens_that_the_attention_mask_hides_do_not_count(side, irregular):
    """Padded batches give the means, and biases, that sequences of their own length give."""
    model, targets = tagger(), []
    if irregular:
        model.flat = model.inner  # which is called twice then
    for data in ([padded(side)], sequences()):
        own = copy.deepcopy(model)
        means = output_means(own, data)
        assert means.irregular == ({"inner"} if irregular else frozenset())
        quantize(own)
        shifts = correct_biases(own, data, means).shifts
        targets.append((means.means, shifts))
    for found, expected in zip(*targets, strict=True):
        assert found.keys() == ({"inner", "head"} if irregular else {"inner", "flat", "head"})
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name])
    assert all(shift.abs().max() > 1e-3 for shift in targets[0][1].values())
