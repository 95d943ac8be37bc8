"""Networks in which activations decide which rows a layer sees, and in which order."""

import torch
from torch import Tensor, nn


class Routed(nn.Module):
    """Hidden vectors, scores of them, and layers for what is selected; subclasses say how."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inner, self.score, self.out = nn.Linear(12, width), nn.Linear(width, 4), nn.Linear(width, 4)
        self.middle = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.inner(x))
        return self.out(hidden + self.added(hidden, self.score(hidden)))

    def added(self, hidden: Tensor, scores: Tensor) -> Tensor:
        return self.middle(hidden)


class Sorted(Routed):
    def added(self, hidden, scores):
        order = scores[:, 0].argsort()
        return torch.zeros_like(hidden).index_copy(0, order, self.middle(hidden[order]))


class TopK(Routed):
    def added(self, hidden, scores):
        best = scores[:, 0].topk(len(hidden) // 2).indices
        return torch.zeros_like(hidden).index_add(0, best, self.middle(hidden[best]))


class Experts(Routed):
    def added(self, hidden, scores):
        chosen, added = scores.argmax(1), torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            if (mine := chosen == number).any():
                added[mine] = expert(hidden[mine])
        return added


class EarlyExit(Routed):
    def added(self, hidden, scores):
        unsure = int(1000 * scores.softmax(1).amax(1).mean()) % 2  # decided in another way by the least change
        return self.middle(hidden) if unsure else torch.zeros_like(hidden)


class Loops(Routed):
    def added(self, hidden, scores):
        added = torch.zeros_like(hidden)
        for _ in range(1 + int(10 * scores.softmax(1).amax(1).mean()) % 3):
            added = added + 0.1 * self.experts[0](hidden + added)
        return added


class Sampling(Routed):
    """Draws a noise and an order, the same for the same state of the generators."""

    def added(self, hidden, scores):
        order = torch.randperm(len(hidden))
        noisy = nn.functional.dropout(hidden, 0.3, training=True)
        return torch.zeros_like(hidden).index_copy(0, order, self.middle(noisy[order]))


def routed(kind: type[Routed], seed: int = 0) -> Routed:
    """Return a network with plain preferences."""
    torch.manual_seed(seed)
    model = kind().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
    return model
