"""Which layers of a model can be quantized, and why others cannot."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..network.layer_kinds import kind_of, taken_name
from ..network.lazy import refuse_uninitialized
from ..network.named_weights import held_by, held_weights, named_layers


def quantizable_layers(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return name -> layer for what can be quantized, and name -> reason for what cannot.

    Raises:
        ValueError: If a layer is not initialized yet.
    """
    refuse_uninitialized(model)
    layers: dict[str, nn.Module] = {}
    refused: dict[str, str] = {}
    for name, module in named_layers(model).items():
        if "weight_quantizers" in held_by(module)[0].__dict__ and "weight" in module._parameters:
            refused[name] = "it is fake-quantized; restore it, or look at it inside of float_weights()"
        elif is_parametrized(module):
            refused[name] = "its weight is computed by a parametrization; remove it first"
        elif "packed_codes" in module._buffers:
            refused[name] = "it is packed already; start from the float model"
        elif kind_of(module) is None:
            if any(
                p.dim() > 1 for n, p in module._parameters.items() if p is not None and n not in held_weights(module)
            ):
                refused[name] = (
                    f"layers of type {type(module).__name__} are not known; register_layer makes them known, if "
                    "forward does no more with their weights than to compute with them"
                )
        elif "weight" not in module._parameters:
            refused[name] = "its weight is not a parameter (weight_norm, or pruning that is not made permanent?)"
        elif not isinstance(module.weight, Tensor) or not module.weight.is_floating_point():
            refused[name] = "its weight is not a floating-point tensor"
        elif module.weight.numel() == 0:
            refused[name] = "its weight is empty"
        elif clash := taken_name(module):
            refused[name] = f"it has {clash!r} for something of its own, a name that packed layers need; rename it"
        else:
            layers[name] = module
    return layers, refused
