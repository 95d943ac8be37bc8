"""Layers as others write them: subclasses that wrap their parent's operation, and experts fused to one tensor."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, one_hot, pad


class SamePadding(nn.Conv2d):
    """Pads so that outputs are as large as inputs, as EfficientNets converted from TensorFlow do."""

    def forward(self, x: Tensor) -> Tensor:
        amounts = []
        for size, kernel, stride in zip(x.shape[-1:-3:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            amounts += [missing // 2, missing - missing // 2]
        return conv2d(pad(x, amounts), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Centred(nn.Linear):
    """Takes the mean away from its inputs, and leaves the rest to its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class ByHand(nn.Linear):
    """Multiplies as Falcon does, without the parent's function."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = x @ self.weight.T
        return outputs if self.bias is None else outputs + self.bias


class Reflected(nn.Linear):
    """Multiplies with its weight and back: no wrapper."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T @ self.weight


class Shifted(nn.Linear):
    """Uses its weight, turned round, for something else too: no wrapper."""

    def forward(self, x: Tensor) -> Tensor:
        turned = self.weight.T
        return torch.matmul(x, turned) + turned.mean()


class WrongWay(nn.Linear):
    """Multiplies with its square weight from the other side: no wrapper."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class ScaledEmbedding(nn.Embedding):
    """Scales what it looks up, as encoders and decoders of many language models do."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids + 1) * 3.0


class Standardized(nn.Conv2d):
    """Computes with another weight than its own: no wrapper."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight - self.weight.mean(), self.bias, self.stride, self.padding)


class PaddedByArgument(nn.Conv2d):
    """Pads otherwise than its attributes say: no wrapper."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, padding=2)


class Activated(nn.Linear):
    """Its outputs are not those of the operation, whose bias could not be corrected by them: no wrapper."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class Moody(nn.Conv2d):
    """Looks at values, which a try without values cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad(x, [1, 1, 1, 1]) if x.abs().max() > 0 else x)


class Experts(nn.Module):
    """Experts as `transformers` keeps them: [E, out, in], the tokens of one after those of another."""

    def __init__(self, count: int = 3, width: int = 4, inner: int = 3) -> None:
        super().__init__()
        self.num_experts = count
        self.gate_up_proj = nn.Parameter(torch.randn(count, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.randn(count, width, inner))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        found = torch.zeros_like(hidden_states)
        mask = one_hot(top_k_index, self.num_experts).permute(2, 1, 0)
        for hit in torch.greater(mask.sum((-1, -2)), 0).nonzero():
            expert = hit[0]
            place, token = torch.where(mask[expert])
            gate, up = linear(hidden_states[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            outputs = linear(gate.sigmoid() * up, self.down_proj[expert])
            found = found.index_add(0, token, outputs * top_k_weights[token, place, None])
        return found


class TransposedExperts(nn.Module):
    """Experts as GPT-OSS keeps them: [E, in, out], to be multiplied from the right."""

    is_transposed = True

    def __init__(self, count: int = 3, width: int = 4, inner: int = 3) -> None:
        super().__init__()
        self.num_experts = count
        self.gate_up_proj = nn.Parameter(torch.randn(count, width, 2 * inner))
        self.down_proj = nn.Parameter(torch.randn(count, inner, width))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        found = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            token, place = torch.where(top_k_index == expert)
            gate, up = (hidden_states[token] @ self.gate_up_proj[expert]).chunk(2, dim=-1)
            outputs = torch.matmul(gate.sigmoid() * up, self.down_proj[expert])
            found = found.index_add(0, token, outputs * top_k_weights[token, place, None])
        return found


class BatchedExperts(nn.Module):
    """Experts as Llama 4 keeps them: [E, in, out], every token sent to each, and nobody says which way round."""

    def __init__(self, count: int = 3, width: int = 4, inner: int = 3) -> None:
        super().__init__()
        self.num_experts = count
        self.gate_up_proj = nn.Parameter(torch.randn(count, width, 2 * inner))
        self.down_proj = nn.Parameter(torch.randn(count, inner, width))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return what experts make of tokens of their own, [experts * tokens, width]."""
        own = hidden_states.view(self.num_experts, -1, hidden_states.shape[-1])
        gate, up = torch.bmm(own, self.gate_up_proj).chunk(2, dim=-1)
        return torch.bmm(gate.sigmoid() * up, self.down_proj).view(hidden_states.shape)


class ParallelExperts(nn.Module):
    """Experts as JetMoE keeps them: a weight called `weight`, for tokens that somebody else has sorted."""

    def __init__(self, count: int, width: int, outputs: int) -> None:
        super().__init__()
        self.num_experts = count
        self.weight = nn.Parameter(torch.randn(count, outputs, width))

    def forward(self, inputs: Tensor, sizes: list[int]) -> Tensor:
        parts = inputs.split(sizes)
        return torch.cat([linear(part, self.weight[expert]) for expert, part in enumerate(parts)])


class Routed(nn.Module):
    """A router, and its experts."""

    kind: type[nn.Module] = Experts

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, 3)
        self.experts = self.kind(width=width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        weights, index = self.router(tokens).softmax(-1).topk(2)
        return self.experts(tokens, index, weights).reshape(x.shape)


class RoutedTransposed(Routed):
    """A router, and its experts the other way round."""

    kind = TransposedExperts


class RoutedAtOnce(Routed):
    """A router whose experts all get every token, times its score."""

    kind = BatchedExperts

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        scores = self.router(tokens).sigmoid()
        sent = tokens.repeat(scores.shape[1], 1) * scores.mT.reshape(-1, 1)
        return self.experts(sent).reshape(scores.shape[1], *x.shape).sum(0)


class RoutedInOrder(Routed):
    """A router that sorts tokens by their experts."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(width)
        self.experts = ParallelExperts(3, width, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        weights, index = self.router(tokens).softmax(-1).max(-1)
        order, sizes = index.argsort(stable=True), index.bincount(minlength=3).tolist()
        outputs = self.experts(tokens[order], sizes) * weights[order, None]
        return torch.zeros_like(tokens).index_copy(0, order, outputs).reshape(x.shape)


class RoutedByCapacity(Routed):
    """A router whose experts each choose as many tokens, in an order of their own."""

    kind = BatchedExperts

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        scores, chosen = self.router(tokens).sigmoid().topk(len(x), dim=0)  # [tokens of each, experts]
        outputs = self.experts(tokens[chosen.mT.reshape(-1)]) * scores.mT.reshape(-1, 1)
        return torch.zeros_like(tokens).index_add(0, chosen.mT.reshape(-1), outputs).reshape(x.shape)


class Scored(nn.Linear):
    """Returns more than the outputs of the operation, as a router does."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits.sigmoid(), logits
