"""Modules whose sums and averages read quantized tensors, by ranges that they store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..inputs.operations import Operations, Site
from ..inputs.quantizer import InputRange, quantize_inputs
from ..inputs.straight_through import rounded_straight_through
from ..schemes import InputScheme
from ..tools.changed_class import change_back, change_class

_BUFFERS = ("operand_scale", "operand_zero_point")
_OWN = ("operand_schemes", "module_name", "straight_through")
_REPLACED: ContextVar[Callable[[str, Tensor], Tensor] | None] = ContextVar("replaced", default=None)


class QuantizesOperands(nn.Module):
    """Mixin of a module's class that quantizes what sums and averages in its forward read.

    Attributes:
        operand_schemes: Site, by the name that it has in this module, to the scheme of what it reads.
        operand_scale: float32 [operands], the steps, site after site.
        operand_zero_point: uint8 [operands], the codes of zero.
        module_name: Name of the module in the model that was packed.
        straight_through: Whether gradients pass through the rounding, as in fine-tuning.
    """

    prefix = "Integer"
    operand_schemes: dict[str, InputScheme]
    operand_scale: Tensor
    operand_zero_point: Tensor
    module_name: str
    straight_through: bool

    def __init_subclass__(cls, **options: Any) -> None:
        """Let the original class's forward, whose signature stays, run on quantized operands."""
        super().__init_subclass__(**options)
        original = cls.__dict__["original_class"].forward

        @wraps(original)
        def forward(self: QuantizesOperands, *args: Any, **kwargs: Any) -> Any:
            with Operations(self._quantized):
                return original(self, *args, **kwargs)

        cls.forward = forward

    def operands(self) -> Iterator[tuple[str, InputScheme, int]]:
        """Yield for each operand its name in the model, its scheme and its place in the buffers."""
        place = 0
        for name, scheme in self.operand_schemes.items():
            site = Site.named(name)._replace(module=self.module_name)
            for index in range(site.operands):
                yield site.operand_name(index), scheme, place
                place += 1

    def _quantized(self, kind: str, number: int, index: int, x: Tensor) -> Tensor:
        place = 0
        for name, scheme in self.operand_schemes.items():
            site = Site.named(name)
            if (site.kind, site.number) == (kind, number):
                replaced = _REPLACED.get()
                if replaced is not None:
                    return replaced(site._replace(module=self.module_name).operand_name(index), x)
                scale, zero_point = self.operand_scale[place + index], self.operand_zero_point[place + index]
                quantize = rounded_straight_through if self.straight_through else quantize_inputs
                return quantize(x, scheme, scale, zero_point)
            place += site.operands
        return x

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the ranges but never cast them."""
        before = {name: self._buffers[name] for name in _BUFFERS}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            assert old is not None
            assert new is not None
            self._buffers[name] = new if new.dtype == old.dtype else old.to(new.device)
        return self


@contextmanager
def operands_replaced(by: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Let operands be what a function makes of their names and values, instead of quantizing them, within a block."""
    token = _REPLACED.set(by)
    try:
        yield
    finally:
        _REPLACED.reset(token)


def quantize_operands(
    model: nn.Module,
    schemes: Mapping[str, InputScheme],
    ranges: Mapping[str, InputRange] | None,
    *,
    straight_through: bool = False,
) -> None:
    """Let sums and averages read quantized tensors from now on, in place.

    Args:
        model: The model.
        schemes: Site to scheme.
        ranges: Operand to range; None if they are still to be filled in.
        straight_through: Whether gradients pass through the rounding; ranges are then not part of the state dict.

    Raises:
        ValueError: If a site is in no module of the model, or a range is missing.
    """
    modules = dict(model.named_modules())
    by_module: dict[str, dict[str, InputScheme]] = {}
    found: dict[str, list[InputRange]] = {}
    for name, scheme in schemes.items():
        site = Site.named(name)
        if site.module not in modules:
            raise ValueError(
                f"The policy quantizes what {name!r} reads, and {type(model).__name__} has no such module."
            )
        by_module.setdefault(site.module, {})[site._replace(module="").name] = scheme
        for operand in map(site.operand_name, range(site.operands)):
            if ranges is not None and operand not in ranges:
                raise ValueError(
                    f"The range of what {name!r} reads is not known; it is found on calibration batches. Pass "
                    "batches=, or leave it out of the policy's operands."
                )
            found.setdefault(site.module, []).append(InputRange(1.0, 0) if ranges is None else ranges[operand])
    for name, own in by_module.items():
        module = modules[name]
        device = next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), None)
        stored = zip(*(each.tensors(device) for each in found[name]), strict=True)
        change_class(module, QuantizesOperands)
        module.__dict__.update(operand_schemes=own, module_name=name, straight_through=straight_through)
        for buffer, values in zip(_BUFFERS, stored, strict=True):
            module.register_buffer(buffer, torch.stack(values), persistent=not straight_through)


def operands_in_float(model: nn.Module) -> Callable[[], None]:
    """Undo `quantize_operands`; return a function that undoes this, with the same tensors."""
    before = [
        (module, {name: module.__dict__[name] for name in _OWN}, {name: module._buffers[name] for name in _BUFFERS})
        for module in modules_with_operands(model).values()
    ]
    for module, *_ in before:
        for name in _BUFFERS:
            delattr(module, name)
        for name in _OWN:
            del module.__dict__[name]
        change_back(module)

    def put_back() -> None:
        for module, own, buffers in before:
            filled = {name: module._buffers.pop(name, value) for name, value in buffers.items()}
            change_class(module, QuantizesOperands)
            module.__dict__.update(own)
            for name, value in filled.items():
                module.register_buffer(name, value, persistent=not module.straight_through)

    return put_back


def modules_with_operands(model: nn.Module) -> dict[str, QuantizesOperands]:
    """Return the modules whose sums and averages read quantized tensors, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizesOperands)}


def operand_schemes(model: nn.Module) -> dict[str, InputScheme]:
    """Return the sites of a model that read quantized tensors, with their schemes."""
    return {
        Site.named(own)._replace(module=name).name: scheme
        for name, module in modules_with_operands(model).items()
        for own, scheme in module.operand_schemes.items()
    }


def operand_ranges(model: nn.Module) -> dict[str, tuple[InputScheme, InputRange]]:
    """Return scheme and range of each operand by its name."""
    return {
        name: (scheme, InputRange(float(module.operand_scale[place]), int(module.operand_zero_point[place])))
        for module in modules_with_operands(model).values()
        for name, scheme, place in module.operands()
    }
