"""The Fisher estimator against a dense Jacobian in float64."""

import warnings

import pytest
import torch
from helpers.dense_derivatives import Enumerated, categorical_information, dense_jacobian, measured
from helpers.profiles import plain_profile
from helpers.weight_uses import (
    MODELS,
    Attention,
    Convolutions,
    Decoder,
    HiddenUses,
    MixtureOfBatchedExperts,
    MixtureOfExperts,
    MixtureOfTransposedExperts,
    Registered,
    Squared,
    TiedLanguageModel,
    Wrapped,
    make,
)
from torch import nn
from torch.nn.functional import linear
from torch.testing import assert_close

from lightning_mpq.curvature.estimators.batched_forward_mode import BatchedForwardMode
from lightning_mpq.network.likelihood import Bernoulli, Categorical, Gaussian
from lightning_mpq.network.named_weights import register_layer


def dense_fisher(model, inputs, deltas, information):
    along = dense_jacobian(model, inputs) @ deltas  # [N, outputs, K]
    return torch.einsum("noi,nop,npj->ij", along, information, along) / len(inputs)


@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
@pytest.mark.filterwarnings("ignore:The calls of these layers")
def test_all_labels_enumerated_give_the_exact_fisher_matrix(kind):
    model, (inputs, labels) = make(kind)
    groups, candidates, deltas = measured(model)
    classes = model(inputs).shape[1]
    taylor = plain_profile(
        model, [(inputs, labels)], groups=groups, candidates=candidates, likelihood=Enumerated(), draws=classes
    )
    exact = dense_fisher(model, inputs, deltas, categorical_information(model.eval()(inputs).detach()))
    assert_close(taylor.curvature, exact, rtol=1e-9, atol=1e-12 * float(exact.max()))
    assert float(exact.abs().min()) > 0  # every pair of candidates is really tested
    assert taylor.gradient.abs().max() == 0
    assert taylor.samples == len(inputs)


@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
@pytest.mark.filterwarnings("ignore:The calls of these layers")
def test_large_weights_are_perturbed_in_pieces(kind, monkeypatch):
    """As if all weights were large: matrices some rows at a time, tables by the rows that were looked up."""
    model, (inputs, labels) = make(kind)
    groups, candidates, deltas = measured(model)
    monkeypatch.setattr("lightning_mpq.curvature.estimators.perturbation._CHUNK_BYTES", 1)
    taylor = plain_profile(
        model,
        [(inputs, labels)],
        groups=groups,
        candidates=candidates,
        likelihood=Enumerated(),
        draws=model(inputs).shape[1],
    )
    exact = dense_fisher(model, inputs, deltas, categorical_information(model.eval()(inputs).detach()))
    assert_close(taylor.curvature, exact, rtol=1e-9, atol=1e-12 * float(exact.max()))


@pytest.mark.parametrize("kind", [Wrapped, MixtureOfExperts, MixtureOfTransposedExperts, MixtureOfBatchedExperts])
def test_wrapped_operations_and_experts_cost_no_further_passes(kind):
    model, batch = make(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain_profile(model, [batch], bits=[2], likelihood=Categorical())


def test_groups_of_several_layers_perturb_all_of_them_together():
    model, (inputs, labels) = make(Convolutions)
    groups, candidates, deltas = measured(model, groups={"convs": ["first", "second", "third"]})
    taylor = plain_profile(
        model, [(inputs, labels)], groups=groups, candidates=candidates, likelihood=Enumerated(), draws=3
    )
    exact = dense_fisher(model, inputs, deltas, categorical_information(model.eval()(inputs).detach()))
    assert [group.name for group in taylor.groups] == ["convs", "last"]
    assert_close(taylor.curvature, exact, rtol=1e-9, atol=1e-12 * float(exact.max()))


class PerPosition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, x):
        mixed = self.hidden(x).tanh().cumsum(1)
        return self.out(mixed)


@pytest.mark.parametrize("class_dim", [1, -1])
def test_scores_sum_over_the_positions_of_a_sequence(class_dim):
    torch.manual_seed(0)
    model, inputs = PerPosition().double(), torch.randn(4, 3, 3, dtype=torch.float64)
    groups, candidates, deltas = measured(model)

    def forward_fn(net, batch):
        return net(batch).movedim(-1, class_dim)

    taylor = plain_profile(
        model,
        [inputs],
        groups=groups,
        candidates=candidates,
        likelihood=Enumerated(class_dim),
        draws=8,
        forward_fn=forward_fn,
    )
    along = (dense_jacobian(model, inputs) @ deltas).unflatten(1, (3, 2)).flatten(0, 1)
    information = categorical_information(model(inputs).detach().flatten(0, 1))
    exact = torch.einsum("noi,nop,npj->ij", along, information, along) / 4
    assert_close(taylor.curvature, exact, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    "likelihood",
    [Categorical(sampling="label"), Categorical(sampling="sign"), Gaussian(variance=0.5), Bernoulli()],
    ids=str,
)
def test_drawn_scores_agree_within_their_standard_errors(likelihood):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs = torch.randn(8, 4, dtype=torch.float64)
    groups, candidates, deltas = measured(model, (2, 4))
    taylor = plain_profile(
        model, [inputs.repeat(250, 1)], groups=groups, candidates=candidates, likelihood=likelihood, draws=2
    )
    outputs = model(inputs).detach()
    if isinstance(likelihood, Categorical):
        information = categorical_information(outputs)
    elif isinstance(likelihood, Gaussian):
        information = torch.eye(3, dtype=torch.float64).expand(8, 3, 3) / 0.5
    else:
        information = torch.diag_embed(outputs.sigmoid() * (1 - outputs.sigmoid()))
    exact = dense_fisher(model, inputs, deltas, information)
    deviation = (taylor.curvature - exact) / taylor.curvature_error
    assert deviation.abs().max() < 4.5
    # errors that are neither too small nor too large: over 10 draws of the whole profile their squares average to 1
    rows = [
        plain_profile(
            model, [inputs.repeat(50, 1)], groups=groups, candidates=candidates, likelihood=likelihood, seed=seed
        )
        for seed in range(10)
    ]
    squares = torch.stack([((t.curvature - exact) / t.curvature_error).square() for t in rows])
    assert 0.4 < squares.mean() < 2.0


def test_every_use_that_layer_calls_hide_is_named_and_measured_by_forward_mode():
    model, (inputs, labels) = make(HiddenUses)
    with pytest.warns(UserWarning, match="their weights: embed\\. ") as caught:
        plain_profile(model, [(inputs, labels)], bits=[2], likelihood=Categorical())
    assert len([w for w in caught if "their weights" in str(w.message)]) == 1


class Positions(nn.Module):
    """Learned positions, the same for all samples, in the two usual forms; optionally used where repeating breaks."""

    def __init__(self, batched: bool, squeezed: bool = False) -> None:
        super().__init__()
        self.token, self.position, self.last = nn.Embedding(5, 4), nn.Embedding(3, 4), nn.Linear(4, 3)
        self.batched, self.squeezed = batched, squeezed

    def forward(self, ids):
        positions = torch.arange(3)
        embedded = self.position(positions[None] if self.batched else positions)
        if self.squeezed:
            embedded = embedded[0] if self.batched else embedded.reshape(3, 4)
        return self.last((self.token(ids) + embedded).tanh().mean(1))


@pytest.mark.parametrize("batched", [True, False])
def test_positions_are_told_apart_by_sample_without_forward_mode(batched):
    torch.manual_seed(0)
    model, ids = Positions(batched).double(), torch.randint(0, 5, (6, 3))
    groups, candidates, deltas = measured(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taylor = plain_profile(model, [ids], groups=groups, candidates=candidates, likelihood=Enumerated(), draws=3)
    exact = dense_fisher(model, ids, deltas, categorical_information(model(ids).detach()))
    assert_close(taylor.curvature, exact, rtol=1e-9, atol=1e-12 * float(exact.max()))


@pytest.mark.parametrize("batched", [True, False])
def test_where_repeating_positions_would_change_the_model_it_is_not_done(batched):
    torch.manual_seed(0)
    model, ids = Positions(batched, squeezed=True).double(), torch.randint(0, 5, (6, 3))
    groups, candidates, deltas = measured(model)
    options = {"groups": groups, "candidates": candidates, "likelihood": Enumerated(), "draws": 3}
    # batched: taking the first of equal rows loses the gradient of the others, though no output changes
    with pytest.warns(UserWarning, match="their weights: position"):
        taylor = plain_profile(model, [ids], **options)
    exact = dense_fisher(model, ids, deltas, categorical_information(model(ids).detach()))
    assert_close(taylor.curvature, exact, rtol=1e-9, atol=1e-12 * float(exact.max()))


def test_ordinary_uses_never_fall_back_to_forward_mode():
    for kind in (Convolutions, TiedLanguageModel):
        model, batch = make(kind)
        for net in (model, model.float()):
            inputs = batch[0].float() if batch[0].is_floating_point() and net is not model else batch[0]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                given = inputs.to(next(net.parameters()).dtype) if inputs.is_floating_point() else inputs
                plain_profile(net, [(given,)],
                        bits=[2, 4], likelihood=Categorical())  # fmt: skip


@pytest.mark.filterwarnings("error:The calls of these layers")
def test_attention_and_layers_linear_in_their_weights_take_one_pass_and_no_forward_mode(monkeypatch):
    slow = []
    plain = BatchedForwardMode.changes

    def changes(self, indices, batch):
        slow.extend(indices)
        return plain(self, indices, batch)

    monkeypatch.setattr(BatchedForwardMode, "changes", changes)
    for kind, nonlinear in ((Attention, ()), (Decoder, ("both_ways", "cell")), (Registered, ("squared",))):
        slow.clear()
        model, (inputs, labels) = make(kind)
        groups, candidates, _ = measured(model, (2, 4))
        plain_profile(model, [(inputs, labels)], groups=groups, candidates=candidates, likelihood=Categorical())
        assert [candidates[i] for i in slow] == [c for c in candidates if c.group.split(".")[0] in nonlinear]


def test_a_layer_wrongly_said_to_be_linear_in_its_weight_is_found_out():
    register_layer(Squared)
    try:
        model, (inputs, labels) = make(Registered)
        groups, candidates, deltas = measured(model, (2, 4))
        with pytest.warns(UserWarning, match="their weights: squared\\. "):
            taylor = plain_profile(
                model, [(inputs, labels)], groups=groups, candidates=candidates, likelihood=Enumerated(), draws=3
            )
    finally:
        register_layer(Squared, linear=False)
    exact = dense_fisher(model, inputs, deltas, categorical_information(model.eval()(inputs).detach()))
    assert_close(taylor.curvature, exact, rtol=1e-9, atol=1e-12 * float(exact.max()))


def test_in_place_activations_and_checkpointing_do_not_disturb_the_taps():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self, in_place: bool, checkpointed: bool) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
            self.relu, self.checkpointed = nn.ReLU(in_place), checkpointed

        def forward(self, x):
            x = self.relu(self.first(x))
            if self.checkpointed:
                block = lambda y: self.relu(self.second(y))  # noqa: E731
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = self.relu(self.second(x))
            return self.third(x)

    plain, inputs = Net(False, False).double(), torch.randn(16, 4, dtype=torch.float64)
    expected = plain_profile(plain, [inputs], likelihood=Categorical(), bits=[2, 3])
    for variant in (Net(True, False), Net(False, True)):
        variant.double().load_state_dict(plain.state_dict())
        got = plain_profile(variant, [inputs], likelihood=Categorical(), bits=[2, 3])
        assert_close(got.curvature, expected.curvature, rtol=1e-12, atol=0)


def test_chunks_divide_the_batch_without_changing_what_is_measured():
    model, batch = make(TiedLanguageModel)
    options = {"bits": [2, 3], "likelihood": Enumerated(), "draws": 4}
    whole, chunked = (plain_profile(model, [batch], chunk_size=size, **options) for size in (None, 4))
    assert_close(chunked.curvature, whole.curvature, rtol=1e-9, atol=1e-14)
    assert chunked.samples == 6


def test_ignored_positions_do_not_count():
    torch.manual_seed(0)
    model, inputs = PerPosition().double(), torch.randn(4, 3, 3, dtype=torch.float64)
    labels = torch.tensor([[0, -100, -100], [1, 0, -100], [-100, -100, -100], [0, 1, 1]])
    groups, candidates, deltas = measured(model)
    along = (dense_jacobian(model, inputs) @ deltas).unflatten(1, (3, 2)).flatten(0, 1)
    information = categorical_information(model(inputs).detach().flatten(0, 1))
    counts = (labels != -100).flatten().double()
    exact = torch.einsum("n,noi,nop,npj->ij", counts, along, information, along) / 4
    divergence = plain_profile(
        model,
        [(inputs, labels)],
        groups=groups,
        candidates=candidates,
        likelihood=Categorical(class_dim=-1),
        estimator="hessian",
        loss="divergence",
    )
    assert_close(divergence.curvature, exact, rtol=1e-9, atol=1e-14)
    drawn = plain_profile(
        model,
        [(inputs.repeat(500, 1, 1), labels.repeat(500, 1))],
        groups=groups,
        candidates=candidates,
        likelihood=Categorical(class_dim=-1, sampling="label"),
    )
    assert ((drawn.curvature - exact) / drawn.curvature_error).abs().max() < 4.5


class Functional(nn.Module):
    """Reads all of its weights without calling a layer."""

    def __init__(self, detached=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.detached = nn.Linear(4, 8), nn.Linear(8, 3), detached

    def forward(self, inputs):
        hidden = torch.relu(linear(inputs, self.first.weight, self.first.bias))
        outputs = linear(hidden, self.second.weight, self.second.bias)
        return outputs.detach() if self.detached else outputs


@pytest.mark.parametrize("estimator", ["fisher", "gauss_newton"])
def test_weights_that_are_read_by_functional_calls_only_are_measured_by_forward_mode(estimator):
    net, batches = Functional(), [torch.randn(16, 4)]
    layers = nn.Sequential(net.first, nn.ReLU(), net.second)
    with pytest.warns(UserWarning, match="first, second.*Forward mode measures them exactly"):
        found = plain_profile(net, batches, estimator=estimator, likelihood=Categorical())
    assert_close(
        found.curvature, plain_profile(layers, batches, estimator=estimator, likelihood=Categorical()).curvature
    )


def test_outputs_that_are_detached_are_a_sentence_that_names_the_way():
    with pytest.raises(ValueError, match="must not detach.*estimator='secant' needs no derivatives"):
        plain_profile(Functional(detached=True), [torch.randn(16, 4)], likelihood=Categorical())
