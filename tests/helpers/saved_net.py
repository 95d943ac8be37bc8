"""A small network with everything that is hard to save: tied and doubly registered layers, buffers, views, meta."""

import json

import torch
from torch import nn

from lightning_mpq.export.manifest import MANIFEST_NAME
from lightning_mpq.modules import pack_model
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

POLICY = BitPolicy(
    {
        "tied": WeightScheme(5, "channel", "asymmetric"),
        "conv.0": WeightScheme(3, 4, "half"),
        "mix": WeightScheme(2, "tensor", scale_dtype="float32"),
    },
    {"tied": ("table", "head")},
)
INDICES = torch.tensor([[0, 3, 10, 2], [1, 1, 5, 7]])


class SavedNet(nn.Module):
    """Packed: a tied table and head, a convolution, a layer under two names. Float: the rest."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.conv = nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU())
        self.mix = nn.Linear(6, 6)
        self.again = self.mix
        self.left = nn.Linear(6, 6)
        self.twin = nn.Linear(6, 6, bias=False)
        self.twin.weight = self.left.weight
        self.recurrent = nn.GRU(6, 6, batch_first=True)
        self.head = nn.Linear(6, 11)
        self.head.weight = self.table.weight
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("both", torch.arange(6.0).reshape(2, 3))
        self.register_buffer("column", self.both[:, 1])

    def forward(self, indices):
        features = self.conv(self.table(indices).transpose(1, 2)).transpose(1, 2)
        features = self.recurrent(self.twin(self.left(self.again(self.mix(features)))))[0]
        return self.head(features) + self.steps + self.column.sum()


def packed_net(seed=0):
    """Return a packed network whose every tensor differs from that of another seed."""
    torch.manual_seed(seed)
    net = SavedNet()
    net(torch.randint(0, 11, (3, 4)))  # BatchNorm statistics of its own
    net.steps.fill_(seed)
    net.both.add_(seed)
    pack_model(net, POLICY)
    return net.eval()


def snapshot(model):
    objects = {name: id(module) for name, module in model.named_modules(remove_duplicate=False)}
    return objects, {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}


def assert_unchanged(model, before):
    objects, tensors = snapshot(model)
    assert objects == before[0]
    assert tensors.keys() == before[1].keys()
    for name, (identity, value) in tensors.items():
        assert identity == before[1][name][0], name
        assert torch.equal(value, before[1][name][1]), name


def weights_file(folder):
    [path] = folder.glob("weights-*.safetensors")
    return path


def resign(folder, **changes):
    """Rewrite the manifest with other values and a valid hash, as a forger would."""
    from lightning_mpq.export.manifest import _body_sha256

    path = folder / MANIFEST_NAME
    body = json.loads(path.read_text())
    body.pop("sha256")
    body |= changes
    path.write_text(json.dumps({**body, "sha256": _body_sha256(body)}))
