"""Padded batches of tokens, the same tokens one sequence after the other, and a network that reads both."""

import torch
from torch import Tensor, nn

IDS = [[3, 1, 4], [1, 5, 2, 6, 5], [2]]


class Tagger(nn.Module):
    """Logits at each token, which see all tokens that the mask does not hide; called and answering by names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 6)
        self.inner, self.flat, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        assert labels is None  # nobody asked for a loss
        x, mask = self.embed(input_ids), attention_mask[..., None].to(self.embed.weight)
        x = self.inner(x + (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)).tanh()
        x = self.flat(x.flatten(0, 1)).unflatten(0, x.shape[:2]).tanh()
        return {"loss": x.sum(), "logits": self.head(x)}


class AttendingTagger(nn.Module):
    """Logits at each token, by attention of two heads, to which what is hidden is larger than all else."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.queries, self.both = nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 16)
        self.embed.weight.data[7] *= 30

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        queries, keys, values = (
            part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.queries(x), *self.both(x).chunk(2, -1))
        )
        scores = (queries @ keys.transpose(2, 3)).masked_fill(attention_mask[:, None, None] == 0, -1e9)
        return {"logits": (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)}


def padded(side: str) -> dict[str, Tensor]:
    longest = max(map(len, IDS))
    rows, masks = [], []
    for ids in IDS:
        fill = longest - len(ids)
        rows.append([7] * fill + ids if side == "left" else ids + [7] * fill)
        masks.append([0] * fill + [1] * len(ids) if side == "left" else [1] * len(ids) + [0] * fill)
    batch = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
    return {**batch, "labels": torch.tensor(rows) % 3}  # a class for each token, none of them shifted


def one_by_one() -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))} for ids in IDS]


def tagger() -> nn.Module:
    torch.manual_seed(0)
    return Tagger().double().eval()
