"""Modules whose sums and averages read quantized tensors, by ranges that they store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from ..inputs.operations import Operations, Site
from ..inputs.quantizer import InputRange, quantize_inputs
from ..schemes import InputScheme
from ..tools.changed_class import change_back, change_class

_BUFFERS = ("operand_scale", "operand_zero_point")
_OWN = ("operand_schemes", "module_name", "rounding")
_REPLACED: ContextVar[Callable[[str, Tensor], Tensor] | None] = ContextVar("replaced", default=None)


class OperandRounding(Protocol):
    """Rounds an operand in the place of its stored range, as in fine-tuning."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the rounded values."""

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        """Follow a module to another device."""


class QuantizesOperands(nn.Module):
    """Mixin of a module's class that quantizes what sums and averages in its forward read.

    Attributes:
        operand_schemes: Site, by the name that it has in this module, to the scheme of what it reads.
        operand_scale: float32 [operands], the steps, site after site.
        operand_zero_point: uint8 [operands], the codes of zero.
        module_name: Name of the module in the model that was packed.
        rounding: What rounds each operand instead, by the name that it has in the model; None unless it is fine-tuned.
    """

    prefix = "Integer"
    operand_schemes: dict[str, InputScheme]
    operand_scale: Tensor
    operand_zero_point: Tensor
    module_name: str
    rounding: Mapping[str, OperandRounding] | None

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
                operand = site._replace(module=self.module_name).operand_name(index)
                if (replaced := _REPLACED.get()) is not None:
                    return replaced(operand, x)
                if self.rounding is not None:
                    return self.rounding[operand](x)
                scale, zero_point = self.operand_scale[place + index], self.operand_zero_point[place + index]
                return quantize_inputs(x, scheme, scale, zero_point)
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
        for rounding in (self.rounding or {}).values():
            rounding.move(fn)
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
    rounding: Mapping[str, OperandRounding] | None = None,
) -> None:
    """Let sums and averages read quantized tensors from now on, in place.

    Args:
        model: The model.
        schemes: Site to scheme.
        ranges: Operand to range; None if they are still to be filled in.
        rounding: What rounds each operand instead, as in fine-tuning; ranges are then not part of the state dict.

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
        stored = zip(*(each.tensors(_device(module)) for each in found[name]), strict=True)
        change_class(module, QuantizesOperands)
        module.__dict__.update(operand_schemes=own, module_name=name, rounding=None)
        if rounding is not None:
            module.__dict__["rounding"] = {operand: rounding[operand] for operand, *_ in module.operands()}
        for buffer, values in zip(_BUFFERS, stored, strict=True):
            module.register_buffer(buffer, torch.stack(values), persistent=rounding is None)


def operand_devices(
    model: nn.Module, schemes: Mapping[str, InputScheme]
) -> dict[str, tuple[InputScheme, torch.device | None]]:
    """Return the operands of sites by name, each with its scheme and where its module lies."""
    modules = dict(model.named_modules())
    return {
        site.operand_name(index): (scheme, _device(modules[site.module], model))
        for site, scheme in ((Site.named(name), scheme) for name, scheme in schemes.items())
        for index in range(site.operands)
    }


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
                module.register_buffer(name, value, persistent=module.rounding is None)

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


def _device(*modules: nn.Module) -> torch.device | None:
    """Return where the first of the modules that has any tensor lies; None if none has."""
    tensors = (tensor for module in modules for tensor in [*module.parameters(), *module.buffers()])
    return next((tensor.device for tensor in tensors), None)
