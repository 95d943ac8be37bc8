"""Fake quantization of a whole model: on, off, packed, saved, and in step on all processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..inputs.quantizer import InputRange
from ..modules import PackedLayer, pack_model, restore_layers
from ..modules.quantized_operands import operands_in_float, quantize_operands
from ..network.layer_kinds import weight_rows
from ..network.named_weights import named_layers
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..tools.checks import shown
from ..tools.clean_up import after_errors, afterwards
from .inputs import InputQuantizer
from .layer import (
    FakeQuantizedLayer,
    fake_quantized_layers,
    fake_quantized_weights,
    float_weights,
    quantizers_in,
    start_all,
    start_fake_quantization,
    stop_all,
)
from .quantizer import WeightQuantizer

INSET = 0.05
"""How far from the ends of its cell a weight starts, in steps."""


class FakeQuantization:
    """The fake-quantized layers of a model and their learned scales, which are no part of its state dict.

    The learned scales need an optimizer group of their own (``add_param_group({"params": list(handle.parameters()),
    "weight_decay": 0.0})``), their state must be saved beside the model's, and where gradients are averaged over
    processes by a wrapper that knows the module's parameters only, `synchronize_gradients` averages theirs.

    Attributes:
        model: The model.
        policy: What it will be packed to.
        ranges: Layer name to the range of its inputs, where the policy has one; ranges do not learn.
    """

    def __init__(self, model: nn.Module, policy: BitPolicy, ranges: Mapping[str, InputRange]) -> None:
        self.model = model
        self.policy = policy
        self.ranges = ranges

    @property
    def layers(self) -> dict[str, FakeQuantizedLayer]:
        """The layers with fake-quantized weights by name, each once."""
        return fake_quantized_layers(self.model)

    @property
    def weights(self) -> dict[str, tuple[nn.Parameter, WeightQuantizer]]:
        """Each weight once, and its quantizer, by the first of its names."""
        found: dict[int, tuple[str, nn.Parameter, WeightQuantizer]] = {}
        for name, parameter, quantizer in fake_quantized_weights(self.model):
            found.setdefault(id(quantizer), (name, parameter, quantizer))
        return {name: (parameter, quantizer) for name, parameter, quantizer in found.values()}

    @property
    def quantizers(self) -> dict[str, WeightQuantizer]:
        """The quantizers by the first name of their weight."""
        return {name: quantizer for name, (_, quantizer) in self.weights.items()}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield weight name and learned scales (relative to those at the start), if scales learn."""
        for name, quantizer in self.quantizers.items():
            if quantizer.relative_scale.requires_grad:
                yield name, quantizer.relative_scale

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the learned scales, for an optimizer."""
        for _, parameter in self.named_parameters():
            yield parameter

    def quantized_rows(self) -> dict[str, QuantizedRows]:
        """Return the codes and scales that the next forward pass computes with, by name as in the policy.

        Raises:
            NonFiniteError: If a weight or scale is NaN or infinite; the message names the layer.
        """
        found = {}
        for name, (parameter, quantizer) in self.weights.items():
            try:
                found[name] = quantizer.quantized(parameter)
            except NonFiniteError as error:
                raise NonFiniteError(f"Layer {name!r}: {error}") from error
        return found

    def float_weights(self) -> AbstractContextManager[None]:
        """Let the layers compute with their parameters unrounded inside of a ``with`` block."""
        return float_weights(self.model)

    def restore(self) -> None:
        """End fake quantization: the layers are of their own classes again, with the weights as trained."""
        stop_all(self.model)
        operands_in_float(self.model)

    def pack(self) -> dict[str, nn.Module]:
        """Replace the layers by packed ones that compute what they computed last, to the last bit.

        Returns:
            Layer name to float layer, for `restore_layers`.

        Raises:
            NonFiniteError: If a weight or scale is NaN or infinite; the model is then as it was.
        """
        rounded = self.quantized_rows()
        found = quantizers_in(self.model)
        put_operands_back = operands_in_float(self.model)
        with after_errors(put_operands_back), after_errors(lambda: start_all(found)):
            stop_all(self.model)
            return pack_model(self.model, self.policy, rounded, self.ranges)

    def state_dict(self) -> dict[str, Any]:
        """Return policy and scales as text and tensors, which ``torch.load(weights_only=True)`` opens."""
        return {
            "policy": self.policy.to_json(),
            "ranges": {name: asdict(found) for name, found in self.ranges.items()},
            "quantizers": {name: quantizer.state() for name, quantizer in self.quantizers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take scales from `state_dict`.

        Raises:
            ValueError: If they belong to another policy or other layers.
        """
        if BitPolicy.from_json(state["policy"]) != self.policy:
            raise ValueError(
                "The saved scales belong to another policy; resume with the one that they were saved with."
            )
        own = self.quantizers
        if set(own) != set(state["quantizers"]):
            other = sorted(set(own) ^ set(state["quantizers"]))
            raise ValueError(f"The saved scales and the model differ in the layer {other[0]!r}.")
        for name, saved in state["quantizers"].items():
            own[name].load_state(saved)

    def synchronize_gradients(self) -> None:
        """Average the gradients of the learned scales over all processes; call it after each backward pass.

        Every process must call it. Does nothing where ``torch.distributed`` is not in use.
        """
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return
        world = torch.distributed.get_world_size()
        scales = list(self.parameters())
        if world == 1 or not scales:
            return
        with torch.no_grad():
            parts: list[Tensor] = []
            for scale in scales:
                gradient = torch.zeros_like(scale) if scale.grad is None else scale.grad
                parts += [gradient.flatten(), scale.new_full((1,), float(scale.grad is not None))]
            flat = torch.cat(parts)
            torch.distributed.all_reduce(flat)
            start = 0
            for scale in scales:
                mean = flat[start : start + scale.numel()].view_as(scale) / world
                if flat[start + scale.numel()] > 0:
                    scale.grad = mean.clone() if scale.grad is None else scale.grad.copy_(mean)
                start += scale.numel() + 1


def fake_quantize(
    model: nn.Module,
    policy: BitPolicy,
    rounded: Mapping[str, QuantizedRows] | None = None,
    *,
    ranges: Mapping[str, InputRange] | None = None,
    learn_scales: bool = True,
    margin: float = 0.5,
    inset: float = INSET,
) -> FakeQuantization:
    """Let the layers that a policy names compute with fake-quantized weights, in place.

    Modules and parameters stay the same objects, and keys of the state dict and signatures stay the same. Weights are
    moved, in place, to the nearest values that are rounded to the given codes, so that the model computes exactly
    what the packed one would.

    Args:
        model: Float model; on an error it is left as it was.
        policy: Which layers, and how.
        rounded: Layer name to the codes and scales to start from, as for `pack_model`; layers that it misses start
            from nearest ones.
        ranges: Layer name to the range of its inputs, where the policy quantizes them: they are rounded with gradients
            that pass straight through within the range, which stays as it is.
        learn_scales: Whether scales learn (LSQ), or stay as they are (straight-through rounding alone).
        margin: How far beyond the outermost levels gradients pass, in steps; see `FakeQuantizedRows`.
        inset: How far from the ends of its rounding cell a weight starts, in steps, 0 < inset <= 1/2.

    Returns:
        The handle that packs, restores, saves, and gives the scales to optimizers.

    Raises:
        TypeError: If a layer cannot be quantized.
        ValueError: If policy or ``rounded`` does not fit the model, or an argument is out of range.
        NonFiniteError: If a weight is NaN or infinite.

    Example:
        >>> from lightning_mpq import WeightScheme
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> weight = net[0].weight
        >>> handle = fake_quantize(net, BitPolicy({"0": WeightScheme(bits=2)}))
        >>> type(net[0]).__name__, weight is next(net.parameters()), len(net[0].weight.unique()) <= 8
        ('FakeQuantizedLinear', True, True)
        >>> type(handle.pack()["0"]).__name__, type(net[0]).__name__
        ('Linear', 'PackedLinear')
    """
    if not 0 < inset <= 0.5:
        raise ValueError(f"inset must be in (0, 0.5] steps, got {shown(inset)}.")
    if not margin >= 0:
        raise ValueError(f"margin must be 0 or more steps, got {shown(margin)}.")
    if already := fake_quantized_layers(model):
        raise ValueError(
            f"Layer {next(iter(already))!r} is fake-quantized already; call restore() on its handle first."
        )
    now = named_layers(model, remove_duplicate=False)
    floats = {name: now[name] for name in policy.by_layer() if name in now}
    with afterwards(lambda: restore_layers(model, floats)):
        names = pack_model(model, policy, rounded, ranges)
        packed = dict(model.named_modules(remove_duplicate=False))
        starts = {name: _rounded(packed[name]) for name in names}
    layers = {name: layer for name, layer in named_layers(model, remove_duplicate=False).items() if name in starts}
    quantizers: dict[int, tuple[nn.Module, WeightQuantizer]] = {}
    moved: dict[int, Tensor] = {}
    for name, layer in layers.items():
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        if id(weight) in quantizers:
            _check_layout(name, layer, quantizers[id(weight)][1])
            continue
        quantizer = WeightQuantizer(layer, starts[name], learn_scale=learn_scales, margin=margin)
        quantizers[id(weight)] = (layer, quantizer)
        moved[id(weight)] = quantizer.weights_with_codes(
            quantizer.rows(weight.detach()), starts[name].codes.to(weight.device), inset
        )
    known = ranges or {}
    inputs = {name: InputQuantizer(scheme, known.get(name)) for name, scheme in policy.inputs().items()}
    weights = [weight for layer, _ in quantizers.values() if isinstance(weight := layer.weight, nn.Parameter)]
    before = {weight: weight.detach().clone() for weight in weights}

    def undo() -> None:
        stop_all(model)
        operands_in_float(model)
        with torch.no_grad():
            for weight, values in before.items():
                weight.copy_(values)

    with after_errors(undo):
        for key, (layer, quantizer) in quantizers.items():
            quantizer.write_rows(layer.weight, moved[key])  # type: ignore[arg-type]
        for name, layer in layers.items():
            start_fake_quantization(layer, quantizers[id(layer.weight)][1], inputs.get(name))
        quantize_operands(model, policy.operands or {}, ranges or {}, straight_through=True)
    return FakeQuantization(model, policy, ranges or {})


def _rounded(layer: nn.Module) -> QuantizedRows:
    assert isinstance(layer, PackedLayer)
    return layer.quantized_rows()


def _check_layout(name: str, layer: nn.Module, quantizer: WeightQuantizer) -> None:
    """Refuse a shared weight that two layers cut into rows in different ways."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    marks = torch.arange(weight.numel(), device=weight.device).view(weight.shape)
    if not torch.equal(weight_rows(layer, marks), quantizer.rows(marks)):
        raise ValueError(
            f"Layer {name!r} shares a weight with another that sees it as different rows, so that it cannot be trained "
            "on one grid; untie them or keep them in float."
        )
