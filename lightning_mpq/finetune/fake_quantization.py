"""The verb `fake_quantize`: a whole model computes with rounded weights and inputs, and learns on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..inputs.quantizer import InputRange
from ..modules import PackedLayer, pack_model, restore_layers
from ..modules.quantized_operands import operand_devices, operands_in_float, quantize_operands
from ..network.layer_kinds import weight_rows
from ..network.named_weights import named_layers
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..rounding.rounded_weights import RoundedLayers
from ..tools.checks import shown
from ..tools.clean_up import after_errors, afterwards
from ..tools.kinds import checked_kinds
from .handle import FakeQuantization
from .inputs import input_quantizers
from .layer import fake_quantized_layers, start_fake_quantization, stop_all
from .quantizer import WeightQuantizer

INSET = 0.05
"""How far from the ends of its cell a weight starts, in steps."""


@checked_kinds
def fake_quantize(
    model: nn.Module,
    policy: BitPolicy,
    rounded: Mapping[str, QuantizedRows] | None = None,
    *,
    ranges: Mapping[str, InputRange] | None = None,
    learn_scales: bool = True,
    learn_ranges: bool = True,
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
            that pass straight through within the range. Those that are equal at the start stay equal.
        learn_scales: Whether scales of weights learn (LSQ), or stay as they are (straight-through rounding alone).
        learn_ranges: Whether ranges of inputs do.
        margin: How far beyond the outermost levels gradients pass, in steps; see `FakeQuantizedRows`.
        inset: How far from the ends of its rounding cell a weight starts, in steps, 0 < inset <= 1/2.

    Returns:
        The handle that packs, restores, saves, and gives the scales to optimizers.

    Raises:
        TypeError: If a layer cannot be quantized.
        ValueError: If policy or ``rounded`` does not fit the model, its weights are not those that were rounded, or an
            argument is out of range.
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
    if isinstance(rounded, RoundedLayers):
        rounded.refuse_changed(model)
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
    own = {name: (scheme, starts[name].codes.device) for name, scheme in policy.inputs().items()}
    placed = {**own, **operand_devices(model, policy.operands or {})}
    inputs = input_quantizers(placed, ranges or {}, learn=learn_ranges)
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
        quantize_operands(model, policy.operands or {}, ranges or {}, rounding=inputs)
    return FakeQuantization(model, policy, inputs)


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
