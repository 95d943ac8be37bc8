"""What peers are asked about a language model: its blocks, and tokens for targets."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.problems.subjects import Subject
from benchmarks.runs.peers.problems import Problem, drawn_targets
from benchmarks.tools.quality import of_tokens
from lightning_mpq import Categorical


class TiedLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.inner(self.table(tokens)))).mT


def test_a_tied_head_is_asked_of_nobody_and_targets_are_drawn_token_by_token():
    torch.manual_seed(0)
    net, tokens = TiedLanguageModel().eval(), torch.randint(0, 20, (6, 400))
    subject = Subject(net, list(tokens.split(2)), [tokens], Categorical(), of_tokens)
    targets = drawn_targets(subject, seed=3)
    task = Problem("tied", subject, targets, {}).task(3.0, 0, {})
    assert list(task.layers) == ["inner"]
    assert task.budget_bytes == 3 * 8 + 2 * 8
    with torch.no_grad():
        outputs = net(tokens)
        entropy = torch.distributions.Categorical(logits=outputs.mT).entropy().mean()
        loss = sum(task.loss(net(inputs), own) for inputs, own in task.batches()) / 3
    torch.testing.assert_close(loss, cross_entropy(outputs, targets))
    torch.testing.assert_close(loss, entropy, rtol=0.1, atol=0)  # what is drawn from the model surprises it that much
