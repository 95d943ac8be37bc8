"""Networks that between them have every layer type, what they take, and policies that a target can hold."""

import random
from dataclasses import replace

import torch
from torch import nn

from lightning_mpq.modules import pack_model
from lightning_mpq.options import CandidateOptions
from lightning_mpq.policy import BitPolicy
from lightning_mpq.targets import offer


class Convolutions(nn.Module):
    """One of each convolution, in groups too, BatchNorm, and products."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Conv2d(8, 8, 3, groups=4, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.line = nn.Conv1d(4, 6, 3)
        self.line_up = nn.ConvTranspose1d(6, 4, 2)
        self.cube = nn.Conv3d(1, 2, 2)
        self.cube_up = nn.ConvTranspose3d(2, 1, 1)
        self.mix = nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        maps = self.up(self.deep(self.stem(images)))
        lines = self.line_up(self.line(maps.flatten(2))).mean(-1)
        cubes = self.cube_up(self.cube(maps.unsqueeze(1))).flatten(1)[:, :28]
        return self.head(torch.relu(self.mix(torch.cat([lines, cubes], 1))))


class Tokens(nn.Module):
    """A table tied to the head, attention, recurrence, a bilinear form and q, k and v."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(16, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(32, 32) for _ in range(3))
        self.recurrent = nn.GRU(32, 32, batch_first=True)
        self.pair = nn.Bilinear(32, 32, 32)
        self.head = nn.Linear(32, 16, bias=False)
        self.head.weight = self.table.weight

    def forward(self, indices):
        hidden = self.encoder(self.table(indices))
        q, k, v = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        hidden = self.recurrent(torch.softmax(q @ k.transpose(1, 2), -1) @ v)[0]
        return self.head(self.pair(hidden, hidden))


def network(kind):
    """Return a network and what it takes."""
    torch.manual_seed(0)
    if kind is Convolutions:
        net, inputs = Convolutions(), torch.randn(4, 3, 8, 8)
        net(torch.randn(16, 3, 8, 8))  # statistics of its own
        return net.eval(), inputs
    return Tokens().eval(), torch.randint(0, 16, (2, 5))


def packed_for(target, net, seed=0, bits=range(2, 9)):
    """Pack a network by a policy of candidates that are drawn from a target's menu; return groups and candidates."""
    options = CandidateOptions(bits=tuple(bits), rounding="nearest")
    groups, candidates = offer(target, net, options)
    draw = random.Random(seed)
    chosen = {g.name: draw.choice([c for c in candidates if c.group == g.name]) for g in groups}
    schemes = {name: replace(candidate.scheme.weight, clip="absmax") for name, candidate in chosen.items()}
    pack_model(net, BitPolicy(schemes, {group.name: group.layers for group in groups}))
    return groups, candidates, chosen
