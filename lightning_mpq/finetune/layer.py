"""Layers that compute with fake-quantized weights, and stay the same objects with the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Self

from torch import Tensor, nn

from ..network.layer_kinds import kind_of
from ..network.named_weights import held_by
from ..tools.attributes import FreshRecurrentWeights
from ..tools.changed_class import change_back, change_class
from ..tools.clean_up import afterwards
from ..tools.scripting import NotScriptable
from .inputs import InputQuantizer, input_quantizer_of, round_inputs_by
from .quantizer import WeightQuantizer
from .straight_through import DenseGradient

Quantizers = tuple[dict[str, WeightQuantizer], InputQuantizer | None]
"""Those of a layer's weights by name, and that of its inputs."""

QUANTIZERS = "weight_quantizers"


class FakeQuantizedLayer(NotScriptable, nn.Module):
    """Mixin whose weights are the fake-quantized ones, computed from the layer's own parameters when they are read.

    The inherited forward reads them, and so does everything else that asks for ``layer.weight``, as with packed
    layers. Parameters, state dict, optimizers and data-parallel wrappers see the float parameters that are trained.
    Gradients of these are dense, also where an embedding makes sparse ones: every weight's rounding counts.

    Attributes:
        weight_quantizers: Parameter name to its grid and learned scales; no parameter, buffer or module of the layer,
            so not in its state dict.
    """

    prefix: ClassVar[str] = "FakeQuantized"
    weight_quantizers: dict[str, WeightQuantizer]

    def compute(self, name: str) -> Tensor:
        """Return a fake-quantized weight in the parameter's own layout."""
        parameter = self._parameters[name]
        assert parameter is not None
        rounded = self.weight_quantizers[name](parameter)
        if getattr(self, "max_norm", None) is not None:  # an embedding renormalises its weight in place
            rounded = rounded.clone()
        return DenseGradient.apply(rounded) if getattr(self, "sparse", False) else rounded

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the quantizers with the layer."""
        super()._apply(fn, recurse)
        for quantizer in self.weight_quantizers.values():
            quantizer.move(fn)
        if (inputs := input_quantizer_of(self)) is not None:
            inputs.move(fn)
        return self


class FakeQuantizedRecurrentLayer(FreshRecurrentWeights, FakeQuantizedLayer):
    """LSTM, GRU or RNN with fake-quantized weights."""


def start_fake_quantization(layer: nn.Module, quantizer: WeightQuantizer, inputs: InputQuantizer | None = None) -> None:
    """Let a weight be fake-quantized wherever its layer reads it from now on; ``layer`` may be a `ParameterView`.

    Args:
        layer: The layer.
        quantizer: Rounds its weight.
        inputs: Rounds what it is called on; None to leave that as it is.
    """
    owner, attribute = held_by(layer)
    _start(owner, {**owner.__dict__.get(QUANTIZERS, {}), attribute: quantizer}, inputs)


def fake_quantized_layers(model: nn.Module) -> dict[str, FakeQuantizedLayer]:
    """Return the fake-quantized layers of a model by name, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantizedLayer)}


def fake_quantized_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, WeightQuantizer]]:
    """Yield (name as in a policy, parameter, quantizer) for each weight; a shared one under each of its names."""
    for name, layer in fake_quantized_layers(model).items():
        for attribute, quantizer in layer.weight_quantizers.items():
            parameter = layer._parameters[attribute]
            assert parameter is not None
            known_by_layer = kind_of(layer) is not None
            yield (name if known_by_layer else f"{name}.{attribute}".lstrip("."), parameter, quantizer)


def quantizers_in(model: nn.Module) -> dict[FakeQuantizedLayer, Quantizers]:
    """Return the fake-quantized layers with their quantizers, for `start_all`."""
    layers = fake_quantized_layers(model).values()
    return {layer: (layer.weight_quantizers, input_quantizer_of(layer)) for layer in layers}


def stop_all(model: nn.Module) -> None:
    """Make all layers float ones again."""
    for layer in fake_quantized_layers(model).values():
        layer.__dict__.pop(QUANTIZERS, None)
        round_inputs_by(layer, None)
        change_back(layer)
        if isinstance(layer, nn.RNNBase):
            layer._init_flat_weights()


def start_all(found: Mapping[FakeQuantizedLayer, Quantizers]) -> None:
    """Undo `stop_all` with what `quantizers_in` returned before; layers that have not been stopped go on."""
    for layer, quantizers in found.items():
        _start(layer, *quantizers)


@contextmanager
def float_weights(model: nn.Module) -> Iterator[None]:
    """Let fake-quantized layers be float ones for a while, with their parameters as they are."""
    found = quantizers_in(model)
    with afterwards(lambda: start_all(found)):
        stop_all(model)
        yield


def _start(owner: nn.Module, quantizers: dict[str, WeightQuantizer], inputs: InputQuantizer | None) -> None:
    owner.__dict__[QUANTIZERS] = quantizers
    recurrent = isinstance(owner, nn.RNNBase)
    mixin = FakeQuantizedRecurrentLayer if recurrent else FakeQuantizedLayer
    if inputs is not None:
        round_inputs_by(owner, inputs)
    change_class(owner, mixin, tuple(quantizers))
    if recurrent:
        owner._init_flat_weights()  # type: ignore[operator]
