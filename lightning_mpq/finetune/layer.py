"""Layers that compute with a fake-quantized weight, and stay the same objects with the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ..layers import rows_to_weight, weight_rows
from .quantizer import WeightQuantizer

QUANTIZER = "weight_quantizer"
"""Attribute of a layer that holds its quantizer; no parameter, buffer or module of it, so not in its state dict."""


class FakeQuantizedLayer(nn.Module):
    """Mixin whose ``weight`` is the fake-quantized one, computed from the layer's own parameter when it is read.

    The inherited forward reads it, and so does everything else that asks for ``layer.weight``, as with packed layers.
    Parameters, state dict, optimizers and data-parallel wrappers see the float parameter that is trained.

    Attributes:
        weight_quantizer: The grid and its learned scales.
    """

    float_class: ClassVar[type[nn.Module]]
    weight_quantizer: WeightQuantizer

    def _weight(self) -> Tensor:
        """Return the fake-quantized weight in the parameter's own layout."""
        parameter = self._parameters["weight"]
        assert parameter is not None
        rounded = self.weight_quantizer(weight_rows(self, parameter))
        return rows_to_weight(self, rounded, parameter.shape)

    weight: Tensor = property(_weight)  # type: ignore[assignment]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the quantizer with the layer."""
        super()._apply(fn, recurse)
        self.weight_quantizer.move(fn)
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle by the float class, since this one is made on the fly."""
        return _new_layer, (type(self).float_class,), self.__getstate__()


def start_fake_quantization(layer: nn.Module, quantizer: WeightQuantizer) -> None:
    """Let a float layer compute with its weight fake-quantized from now on."""
    layer.__dict__[QUANTIZER] = quantizer
    layer.__class__ = fake_quantized_class(type(layer))  # type: ignore[arg-type]  # mypy: a metaclass's __hash__


def stop_fake_quantization(layer: FakeQuantizedLayer) -> None:
    """Make a layer a float one again; its weight is the parameter as it is now."""
    layer.__class__ = type(layer).float_class  # type: ignore[assignment]
    del layer.__dict__[QUANTIZER]


@cache
def fake_quantized_class(float_class: type[nn.Module]) -> type[FakeQuantizedLayer]:
    """Return the subclass of a layer's class whose weight is fake-quantized; the same one each time."""
    body = {"float_class": float_class, "__module__": float_class.__module__, "__doc__": float_class.__doc__}
    made: type = type(float_class)(f"FakeQuantized{float_class.__name__}", (FakeQuantizedLayer, float_class), body)  # type: ignore[misc]
    assert issubclass(made, FakeQuantizedLayer)
    return made


def fake_quantized_layers(model: nn.Module) -> dict[str, FakeQuantizedLayer]:
    """Return the fake-quantized layers of a model by name, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantizedLayer)}


@contextmanager
def float_weights(model: nn.Module) -> Iterator[None]:
    """Let fake-quantized layers be float ones for a while, with their parameters as they are."""
    paused = {layer: layer.weight_quantizer for layer in fake_quantized_layers(model).values()}
    for layer in paused:
        stop_fake_quantization(layer)
    try:
        yield
    finally:
        for layer, quantizer in paused.items():
            start_fake_quantization(layer, quantizer)


def _new_layer(float_class: type[nn.Module]) -> FakeQuantizedLayer:
    made = fake_quantized_class(float_class)  # type: ignore[arg-type]
    return made.__new__(made)
