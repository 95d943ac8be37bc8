"""Where inputs can be quantized: layers that give what they are called on to a product with their weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ..network.hooks import first_argument, hooked
from ..network.layer_kinds import float_class
from ..network.named_weights import named_layers
from ..network.own_operation import is_plain
from ..schemes import InputScheme
from .quantizer import InputRange, quantize_inputs

SITE_TYPES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
"""Types of layers whose inputs can be quantized."""


def input_sites(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a float model whose inputs can be quantized, under every name that they have.

    Not among them are layers with a forward of their own, those that no one calls (the projections of
    `nn.MultiheadAttention`, which multiplies by their weights itself), and layers that look up rows.
    """
    never_called = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    layers = named_layers(model, remove_duplicate=False)
    return {name: layer for name, layer in layers.items() if _is_site(layer) and id(layer) not in never_called}


def refusal(layer: str, module: nn.Module | None, sites: Mapping[str, nn.Module], scheme: InputScheme) -> str | None:
    """Return why the inputs of a layer cannot be quantized so; None if they can."""
    if layer not in sites:
        kind = "no layer of the model" if module is None else f"of type {type(module).__name__} here"
        return (
            f"The inputs of {layer!r} cannot be quantized: it is {kind}; those of Linear, Conv and ConvTranspose "
            'layers that are called as modules can be. Give its inputs "float".'
        )
    if scheme.granularity == "token" and not isinstance(module, nn.Linear):
        return (
            f"{layer!r} is a {type(module).__name__}, whose inputs have no tokens: granularity='token' is for Linear "
            "layers. Take granularity='tensor'."
        )
    return None


@contextmanager
def inputs_changed(layers: Mapping[str, nn.Module], change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Let layers compute with other inputs for the time of a block.

    Args:
        layers: Name to layer.
        change: Called with the name of a layer and its floating-point input, returns what it computes with.
    """

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = first_argument(args, kwargs)
        if not isinstance(given, Tensor) or not given.is_floating_point():
            return None
        changed = change(name, given)
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "input": changed})

    with hooked(before=[(layer, partial(hook, name)) for name, layer in layers.items()], with_kwargs=True):
        yield


def inputs_quantized(
    layers: Mapping[str, nn.Module], schemes: Mapping[str, InputScheme], ranges: Mapping[str, InputRange]
) -> AbstractContextManager[None]:
    """Let layers compute with quantized inputs for the time of a block.

    Args:
        layers: Name to layer, those with a scheme.
        schemes: Name to the scheme of its inputs.
        ranges: Name to the range of its inputs, where the scheme stores one.
    """

    def rounded(name: str, inputs: Tensor) -> Tensor:
        with _disable_current_modes():  # a pass takes the same route with rounded inputs, which may be noted
            found = ranges[name].tensors(inputs.device) if schemes[name].needs_range else (None, None)
            return quantize_inputs(inputs, schemes[name], *found)

    return inputs_changed(layers, rounded)


def _is_site(layer: nn.Module) -> bool:
    kind = float_class(layer)
    return kind in SITE_TYPES and kind is not None and is_plain(layer, kind) and "forward" not in layer.__dict__
