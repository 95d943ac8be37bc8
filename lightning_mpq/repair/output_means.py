"""Mean outputs of layers over calibration data, and in which order layers are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..network.calibration import Calibration
from ..network.forward import ForwardFn
from ..network.hooks import hooked
from ..network.isolation import isolated
from ..network.layer_kinds import ParameterView, kind_of
from ..network.named_weights import named_layers
from ..network.own_operation import declared_class
from ..network.tokens import real_tokens, token_mask, weights_of_tokens
from ..tools.distributed import gather, sum_over_ranks


@dataclass(frozen=True)
class OutputMeans:
    """The mean outputs of layers.

    Attributes:
        means: Layer name to its mean output over samples and positions, [channels] in float64, in the order in
            which the layers are called. Tokens that a batch's ``attention_mask`` hides do not count, and outliers
            among those of a linear layer count less (see `MeanOutput`).
        irregular: Layers that not every pass calls exactly once, or not in the same order.
        skipped: Layer name to the reason why its bias cannot be corrected.
    """

    means: Mapping[str, Tensor]
    irregular: frozenset[str] = frozenset()
    skipped: Mapping[str, str] = field(default_factory=dict)


def output_means(
    model: nn.Module,
    batches: Iterable[Any] | Calibration,
    layers: Iterable[str] | None = None,
    *,
    forward_fn: ForwardFn | None = None,
) -> OutputMeans:
    """Measure the mean outputs of layers with a bias in one pass; on the float model, before it is quantized.

    Where torch.distributed is in use, every process calls this with its own batches, and all get the means over the
    batches of all; `correct_biases` likewise.

    Args:
        model: The float model, left as it was.
        batches: Calibration batches.
        layers: Names of the layers to correct later, such as those that will be quantized; default: all Linear and
            convolution layers. Layers without a bias are skipped: no bias is created.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.

    Returns:
        The means, for `correct_biases`.

    Raises:
        ValueError: If there is no batch, or a layer is not in the model.
    """
    modules = named_layers(model, remove_duplicate=False)
    names = [name for name, m in model.named_modules() if _is_affine(m)] if layers is None else list(layers)
    if missing := [name for name in names if name not in modules]:
        raise ValueError(f"{type(model).__name__} has no layer {missing[0]!r}.")
    skipped = _without_own_bias(model, names, modules)
    sums: dict[str, MeanOutput] = {name: MeanOutput() for name in names if name not in skipped}
    calls: list[str] = []
    ways: dict[tuple[str, ...], None] = {}
    calibration = Calibration.of(model, batches, forward_fn=forward_fn)
    mask: Tensor | None = None

    def add(name: str, module: nn.Module, args: object, output: Any) -> None:
        calls.append(name)
        sums[name].add(modules[name], of_layer(output), mask)

    def forward(number: int, batch: Any) -> None:
        nonlocal mask
        mask = token_mask(batch)
        calls.clear()
        calibration.forward(batch, number)
        ways.setdefault(tuple(calls))

    sites = sites_of_calls(model, {name: modules[name] for name in sums})
    with hooked(after=[(sites[name], partial(add, name)) for name in sums]), isolated(model), torch.no_grad():
        calibration.each(forward, "measuring mean outputs")
    every_way = [way for ways_of_rank in gather(list(ways)) for way in ways_of_rank]
    called = dict.fromkeys(name for way in every_way for name in way)
    skipped |= {name: "it is never called" for name in sums if name not in called}
    return OutputMeans({name: sums[name].mean(modules[name]) for name in called}, _irregular(every_way), skipped)


_OUTLIER = 4.0
"""How many times the median size of a batch's tokens a token may have that counts in full."""


class MeanOutput:
    """Averages a layer's outputs over all but the channels, in float64, without tokens that do not count.

    Tokens of a linear layer with enormous outputs, and errors to match, count less (see `weights_of_tokens`), as all
    tokens get the shift of a bias.

    Attributes:
        total: Weighted sum of outputs, [channels]; None before the first.
        count: Sum of weights.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self.total: Tensor | None = None
        self.count = 0.0

    def add(self, layer: nn.Module, output: Tensor, mask: Tensor | None) -> None:
        """Add one call in the pass of a batch with this `token_mask`."""
        output = channels_last(layer, output.detach())
        wide = torch.float32 if output.device.type == "mps" else torch.float64
        if _spatial(layer):  # windows of a convolution mix tokens
            by_channel = output.flatten(0, -2)
            total, count = by_channel.sum(0, dtype=wide), float(len(by_channel))
        else:
            tokens = real_tokens(output, mask).flatten(0, -2).to(wide)
            weights = weights_of_tokens(tokens, most=_OUTLIER)
            total, count = weights @ tokens, float(weights.sum())
        self.total = total if self.total is None else self.total + total
        self.count += count

    def counted_anywhere(self) -> bool:
        """Tell whether the layer was called, on whatever process; all must ask."""
        return any(gather(self.count))

    def mean(self, layer: nn.Module) -> Tensor:
        """Return the mean over the layer's calls on all processes, shaped like its bias."""
        bias = layer.bias
        assert isinstance(bias, Tensor)
        wide = torch.float32 if bias.device.type == "mps" else torch.float64
        total = torch.zeros_like(bias, dtype=wide) if self.total is None else self.total
        count = float(sum_over_ranks(torch.tensor(self.count, dtype=torch.float64)))
        return sum_over_ranks(total.detach()) / (count or 1.0)


def channels_last(layer: nn.Module, output: Tensor) -> Tensor:
    """Return a view of a layer's output whose last dimension is that of the channels."""
    return output.movedim(-1 - _spatial(layer), -1)


def _spatial(layer: nn.Module) -> int:
    """Return the number of spatial dimensions of a layer's outputs; 0 of a linear one."""
    return len(getattr(layer, "kernel_size", ()))


def sites_of_calls(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules at whose calls the outputs of layers are seen.

    `nn.MultiheadAttention` never calls its output projection, but returns its output.
    """
    attention = {id(m.out_proj): m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    return {name: attention.get(id(layer), layer) for name, layer in layers.items()}


def of_layer(output: Any) -> Tensor:
    """Return the output of a layer, of attention without its weights."""
    found = output[0] if isinstance(output, tuple) else output
    assert isinstance(found, Tensor)
    return found


def _irregular(ways: Sequence[tuple[str, ...]]) -> frozenset[str]:
    """Return the layers that not all passes, given by the names of layers as they call them, call once and in order.

    Example:
        >>> sorted(_irregular([("a", "b", "c", "b"), ("a", "b", "c", "b")])), sorted(_irregular([("a", "b"), ("a",)]))
        (['b'], ['b'])
        >>> sorted(_irregular([("a", "b"), ("b", "a")]))
        ['a', 'b']
    """
    names = {name for way in ways for name in way}
    once = {name for name in names if all(way.count(name) == 1 for way in ways)}
    orders = {tuple(name for name in way if name in once) for way in ways}
    return frozenset(names - once if len(orders) == 1 else names)


def _is_affine(module: nn.Module) -> bool:
    kind = None if isinstance(module, ParameterView) else kind_of(module)
    return kind is not None and kind.operation in ("linear", "convolution", "transposed")


def _without_own_bias(model: nn.Module, names: Iterable[str], modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return layer name to the reason why its bias cannot be corrected, for those where it cannot."""
    every = {id(module): module for module in model.modules()}.values()
    uses = Counter(id(p) for module in every for p in module._parameters.values() if p is not None)
    reasons: dict[str, str] = {}
    for name in names:
        bias = modules[name]._parameters.get("bias")
        if isinstance(modules[name], ParameterView):
            reasons[name] = "the outputs of this weight alone are not seen"
        elif not _is_affine(modules[name]):
            reasons[name] = f"a {type(modules[name]).__name__} has no bias to correct"
        elif declared_class(modules[name]) is not None:
            reasons[name] = "what it does after the operation that it wraps is not known"
        elif bias is None:
            reasons[name] = "it has no bias"
        elif uses[id(bias)] > 1:
            reasons[name] = "it shares its bias with another layer"
    return reasons
