"""Repair without BatchNorm: shift biases until the mean output of every layer is that of the float model again.

M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, arXiv:1906.04721, appendix D (empirical bias correction).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .calling import ForwardFn, forward_batch
from .curvature.isolation import isolated
from .distributed import errors_shared, gather, refuse_empty_ranks, sum_over_ranks
from .held_weights import named_layers
from .layers import ParameterView, kind_of


@dataclass(frozen=True)
class OutputMeans:
    """What layers put out on average.

    Attributes:
        means: Layer name to its mean output over samples and positions, [channels] in float64, in the order in
            which the layers are called.
        repeated: Layers that are called several times in one forward pass.
        skipped: Layer name to the reason why its bias cannot be corrected.
    """

    means: Mapping[str, Tensor]
    repeated: frozenset[str] = frozenset()
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BiasCorrection:
    """What was changed.

    Attributes:
        shifts: Layer name to what was added to its bias, [channels].
        skipped: Layer name to the reason why its bias was not corrected.
        undo: Puts the biases back.
    """

    shifts: Mapping[str, Tensor]
    skipped: Mapping[str, str]
    undo: Callable[[], None]


def output_means(
    model: nn.Module, batches: Iterable[Any], layers: Iterable[str] | None = None, forward_fn: ForwardFn | None = None
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
    sums: dict[str, _Sum] = {name: _Sum() for name in names if name not in skipped}
    order: dict[str, None] = {}
    count = 0

    def hook(name: str) -> Callable[..., None]:
        def add(module: nn.Module, args: object, output: Tensor) -> None:
            order.setdefault(name)
            sums[name].add(module, output)

        return add

    with errors_shared(), _hooks({modules[name]: hook(name) for name in sums}), isolated(model), torch.no_grad():
        for count, batch in enumerate(batches, start=1):  # noqa: B007 - counted after the loop
            forward_batch(model, batch, forward_fn, number=count)
    parts = gather((count, {name: sums[name].calls for name in order}))
    refuse_empty_ranks([batches_of_rank for batches_of_rank, _ in parts])
    if not count:
        raise ValueError("Mean outputs need at least one calibration batch, got none.")
    calls = Counter[str]()
    for _, calls_of_rank in parts:
        calls.update(calls_of_rank)
    total = sum(batches_of_rank for batches_of_rank, _ in parts)
    skipped |= {name: "it is never called" for name in sums if name not in calls}
    repeated = frozenset(name for name in calls if calls[name] > total)
    return OutputMeans({name: sums[name].mean(modules[name]) for name in calls}, repeated, skipped)


def correct_biases(
    model: nn.Module, batches: Sequence[Any], target: OutputMeans, forward_fn: ForwardFn | None = None
) -> BiasCorrection:
    """Shift biases so that each layer's mean output is the float model's, layer by layer in the order of calls.

    A layer is measured behind all earlier layers as they are by then, quantized and corrected, so that what is
    corrected is the mean of the error as it arrives, not only the layer's own. This takes one pass for each layer,
    cut short behind it. Biases stay the same Parameters; a layer in front of BatchNorm statistics that are
    re-estimated later neither gains nor loses.

    Args:
        model: The quantized model; its biases are changed in place.
        batches: The batches that ``target`` was measured on.
        target: What `output_means` returned for the float model.
        forward_fn: ``(model, batch) -> outputs``.

    Returns:
        What was done, and how to undo it.

    Raises:
        ValueError: If there is no batch, or a layer has gone. Biases are then, and after any error, as they were.

    Example:
        >>> net, data = nn.Sequential(nn.Linear(3, 2)), torch.randn(100, 3) + 1
        >>> means = output_means(net, [data])
        >>> with torch.no_grad():
        ...     _ = net[0].weight.add_(0.5)
        >>> list(correct_biases(net, [data], means).shifts)
        ['0']
        >>> torch.allclose(net(data).mean(0).double(), means.means["0"], atol=1e-5)
        True
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if missing := [name for name in target.means if getattr(modules.get(name), "bias", None) is None]:
        raise ValueError(f"Layer {missing[0]!r} had a bias in the float model, but there is none in this model.")
    refuse_empty_ranks(gather(len(batches)))
    if not len(batches):
        raise ValueError("Bias correction needs at least one calibration batch, got none.")
    biases: dict[str, Tensor] = {name: modules[name].bias for name in target.means}
    before = {name: bias.detach().clone() for name, bias in biases.items()}

    def undo() -> None:
        with torch.no_grad():
            for name, bias in biases.items():
                bias.copy_(before[name])

    try:
        with isolated(model), torch.no_grad():
            for name, mean in target.means.items():
                now = _mean_output(model, batches, modules[name], name in target.repeated, forward_fn)
                biases[name].add_((mean - now).to(biases[name]))
    except BaseException:
        undo()
        raise
    shifts = {name: bias.detach() - before[name] for name, bias in biases.items()}
    return BiasCorrection(shifts, dict(target.skipped), undo)


class _Behind(Exception):
    """Ends a forward pass behind the layer that is looked at."""


class _Sum:
    """Sum of a layer's outputs over all but the channels, in float64."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0
        self.calls = 0

    def add(self, module: nn.Module, output: Tensor) -> None:
        spatial = len(getattr(module, "kernel_size", ()))
        by_channel = output.detach().movedim(-1 - spatial, 0).flatten(1)
        wide = torch.float32 if output.device.type == "mps" else torch.float64
        total = by_channel.sum(1, dtype=wide)
        self.total = total if self.total is None else self.total + total
        self.count += by_channel.shape[1]
        self.calls += 1

    def mean(self, layer: nn.Module) -> Tensor:
        """Return the mean over the layer's calls on all processes, shaped like its bias."""
        bias = layer.bias
        assert isinstance(bias, Tensor)
        wide = torch.float32 if bias.device.type == "mps" else torch.float64
        total = torch.zeros_like(bias, dtype=wide) if self.total is None else self.total
        count = int(sum_over_ranks(torch.tensor(self.count)))
        return sum_over_ranks(total.detach()) / max(count, 1)


def _mean_output(
    model: nn.Module, batches: Sequence[Any], layer: nn.Module, repeated: bool, forward_fn: ForwardFn | None
) -> Tensor:
    """Return the mean output of one layer, [channels]; passes end behind it unless it is called again."""
    found = _Sum()

    def add(module: nn.Module, args: object, output: Tensor) -> None:
        found.add(module, output)
        if not repeated:
            raise _Behind

    with errors_shared(), _hooks({layer: add}):
        for number, batch in enumerate(batches, start=1):
            try:
                forward_batch(model, batch, forward_fn, number=number)
            except _Behind:
                continue
    return found.mean(layer)


@contextmanager
def _hooks(hooks: Mapping[nn.Module, Callable[..., None]]) -> Any:
    """Register forward hooks for the time of a block."""
    handles = []
    try:
        for module, hook in hooks.items():
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


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
        elif bias is None:
            reasons[name] = "it has no bias"
        elif uses[id(bias)] > 1:
            reasons[name] = "it shares its bias with another layer"
    return reasons
