"""Routes of two passes: the same where values differ and rows do not, and different where rows may have moved."""

import pytest
import torch
from torch import nn

from lightning_mpq.network.route import Route

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def route(forward, x) -> bytes:
    with torch.no_grad(), Route() as found:
        forward(x)
    return found.so_far()


SAME = {
    "layers": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 4)),
    "attention": nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0),
    "pooling": lambda x: torch.max_pool1d(x[None], 2),
    "a gate": lambda x: torch.where(x > 0, x, 0.1 * x),
    "a mask of attention": lambda x: (x @ x.T).masked_fill(x @ x.T > 0, 0).softmax(1),
    "a constant order": lambda x: x[torch.arange(4, -1, -1)],
    "a number of its own": lambda x: x / x.abs().max().item(),
}
DIFFERENT = {
    "sort": lambda x: x[x[:, 0].argsort()],
    "sorted values": lambda x: x.sort(0).values,
    "top-k": lambda x: x.gather(0, x.topk(2, 0).indices),
    "a mask": lambda x: x[x[:, 0] > 0],
    "argmax": lambda x: torch.eye(4)[x.argmax(1)],
    "one-hot": lambda x: nn.functional.one_hot(x.argmax(1), 4).float() @ x[:4],
    "sampling": lambda x: x[x[:, 0].softmax(0).multinomial(3, generator=torch.Generator().manual_seed(0))],
    "an early exit": lambda x: x if x.sum() > 1 else x + 1,
    "a count": lambda x: x[: int((x > 0).sum())],
    "a sort by others": lambda x: x[torch.from_numpy(x[:, 0].numpy().argsort())],
    "scatter": lambda x: torch.zeros(6, 4).index_add(0, (x[:, 0] > 0).long(), x),
}


@pytest.mark.parametrize("forward", SAME.values(), ids=list(SAME))
def test_values_alone_change_no_route(forward):
    assert route(forward, X) == route(forward, X.flip(0))
    assert route(forward, X) != route(lambda x: forward(x) + 0, X)


@pytest.mark.parametrize("forward", DIFFERENT.values(), ids=list(DIFFERENT))
def test_rows_that_move_change_it(forward):
    assert route(forward, X) == route(forward, X.clone())
    assert route(forward, X) != route(forward, X.flip(0) * torch.tensor([[-1.0], [1], [2], [1], [0.5], [1]]))
