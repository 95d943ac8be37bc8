"""What outputs mean: each likelihood's curvature against the Hessian of its divergence, and what ``"auto"`` takes."""

import pytest
import torch
from helpers.profiles import plain_profile
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div
from torch.testing import assert_close

from lightning_mpq.network.likelihood import Bernoulli, Categorical, Gaussian

LIKELIHOODS = {
    "categorical": (Categorical(), lambda f, g: kl_div(g.log_softmax(-1), f.softmax(-1), reduction="sum")),
    "gaussian": (Gaussian(variance=0.25), lambda f, g: (f - g).square().sum() / (2 * 0.25)),
    "bernoulli": (
        Bernoulli(),
        lambda f, g: (
            binary_cross_entropy_with_logits(g, f.sigmoid(), reduction="sum")
            - binary_cross_entropy_with_logits(f, f.sigmoid(), reduction="sum")
        ),
    ),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_each_likelihood_is_the_hessian_of_its_divergence(name):
    likelihood, reference = LIKELIHOODS[name]
    torch.manual_seed(0)
    outputs, others = 3 * torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    divergence = likelihood.divergence(outputs, others, None)
    identity = torch.eye(3, dtype=torch.float64)
    for n in range(4):
        assert_close(divergence[n], reference(outputs[n], others[n]))
        information = torch.func.hessian(lambda g, f=outputs[n]: reference(f, g))(outputs[n])
        repeated = outputs[n].expand(3, 3)
        root = likelihood.root_product(repeated, identity, None).T  # column c is L e_c
        assert_close(root @ root.T, information)
        assert_close(likelihood.root_transpose_product(repeated, identity, None).T, root.T)


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 2]), "Categorical\\(class_dim=1"),
        (torch.zeros(2, 3, 5), torch.zeros(2, 5, dtype=torch.long), "Categorical\\(class_dim=1"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.long), "Categorical\\(class_dim=-1"),
        (torch.zeros(2, 3), None, "Categorical\\(class_dim=1"),
        (torch.zeros(2, 1), None, "Gaussian"),
        (torch.zeros(2, 3), torch.rand(2, 3), "Gaussian"),
        (torch.zeros(2, 1), torch.tensor([0.0, 1.0]), "Bernoulli"),
    ],
)
def test_auto_says_what_it_took(outputs, targets, expected):
    model = nn.Sequential(nn.Linear(2, 2))
    batch = (torch.randn(2, 2), targets) if targets is not None else torch.randn(2, 2)

    def forward_fn(net, batch):
        inputs = batch[0] if isinstance(batch, tuple) else batch
        return net(inputs).sum() * torch.arange(1.0, 1 + outputs.numel()).view_as(outputs) / 50 + outputs

    with pytest.warns(UserWarning, match=f"auto' took {expected}"):
        plain_profile(model, [batch], forward_fn=forward_fn, bits=[2], likelihood="auto")


def test_auto_refuses_what_it_cannot_tell():
    model = nn.Linear(2, 6)
    with pytest.raises(ValueError, match="cannot tell what outputs"):
        plain_profile(model, [torch.zeros(2, 2)], forward_fn=lambda net, x: net(x).unflatten(1, (2, 3)), bits=[2])


@pytest.mark.parametrize("hidden", [[], [0], [0, 1, 2], [0, 3, 5]])
@pytest.mark.parametrize("as_pair", [False, True])
def test_positions_of_a_causal_language_model_count_where_its_own_loss_looks(hidden, as_pair):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=9, pad_token_id=0, **sizes))
    tokens = torch.randint(1, 9, (2, 6))
    labels = tokens.clone()
    labels[0, hidden] = -100
    found = model(input_ids=tokens, labels=labels)
    found.logits.retain_grad()
    found.loss.backward()
    looked_at = found.logits.grad.abs().sum(-1) > 0
    batch = ({"input_ids": tokens}, labels) if as_pair else {"input_ids": tokens, "labels": labels}
    logits, likelihood = found.logits.detach(), Categorical(class_dim=-1)
    score = likelihood.score(logits, batch, torch.Generator().manual_seed(0))
    assert_close(score.abs().sum(-1) > 0, looked_at)
    assert likelihood.counted(logits, batch) == looked_at.sum()


def test_labels_that_are_no_copy_of_the_inputs_count_where_they_stand():
    tokens, labels = torch.tensor([[3, 1, 4, 1]]), torch.tensor([[-100, 2, 4, -100]])  # of a masked language model
    score = Categorical(class_dim=-1).score(
        torch.randn(1, 4, 9), {"input_ids": tokens, "labels": labels}, torch.Generator().manual_seed(0)
    )
    assert (score.abs().sum(-1) > 0).tolist() == [[False, True, True, False]]
