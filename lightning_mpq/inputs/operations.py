"""Sums, averages and products between layers, seen and changed where a module's forward computes them, as no hook can.

They run in integers only if what they read is quantized: a site is one of them, in the module whose own forward
computes it. Products of attention are those of queries with keys and of probabilities with values;
``scaled_dot_product_attention`` reads queries, keys and values, and what it makes of them in between is out of reach.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Value = TypeVar("Value")
_FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {
    "add": (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__),
    "mean": (torch.mean, Tensor.mean),
    "average": (
        F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    ),
    "product": (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm),
    "attention": (F.scaled_dot_product_attention,),
}  # fmt: skip
PRODUCTS = ("product", "attention")
"""Kinds that multiply what they read."""
MULTIPLY = frozenset({
    F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    F.multi_head_attention_forward, torch.mm, Tensor.mm, torch.addmm, torch.baddbmm, torch.einsum,
    *(function for kind in PRODUCTS for function in _FUNCTIONS[kind]),
})  # fmt: skip
"""Functions that multiply tensors, of any shape."""
_KIND = {function: kind for kind, functions in _FUNCTIONS.items() for function in functions}
_NAME = re.compile(rf"(?:(?P<module>.+)\.)?(?P<kind>{'|'.join(_FUNCTIONS)})(?P<number>\d+)")
_OPERANDS = {"add": 2, "mean": 1, "average": 1, "product": 2, "attention": 3}


class Site(NamedTuple):
    """A sum, an average or a product in the forward of a module.

    Attributes:
        module: Name of the module; empty for the model itself.
        kind: ``"add"``, ``"mean"``, ``"average"``, ``"product"`` or ``"attention"``.
        number: Of those of its kind in one call of the module, what it calls included, from 0.

    Example:
        >>> Site.named("layer1.0.add2"), Site("", "mean", 0).name
        (Site(module='layer1.0', kind='add', number=2), 'mean0')
    """

    module: str
    kind: str
    number: int

    @property
    def name(self) -> str:
        """Return what it is called in policies."""
        return f"{self.module}.{self.kind}{self.number}".lstrip(".")

    @property
    def operands(self) -> int:
        """Return how many tensors it reads."""
        return _OPERANDS[self.kind]

    def operand_name(self, index: int) -> str:
        """Return what one of the tensors that it reads is called where ranges are kept by name."""
        return f"{self.name}:{index}"

    @classmethod
    def named(cls, name: str) -> Site:
        """Return the site of a name.

        Raises:
            ValueError: If it is no name of a site.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(
                f"Expected the name of a module, a dot, one of {', '.join(_FUNCTIONS)} and a number, got {name!r}."
            )
        return cls(found["module"] or "", found["kind"], int(found["number"]))


def by_operand(sites: Mapping[str, Value]) -> dict[str, Value]:
    """Return what is known of sites under the names of their operands.

    Example:
        >>> by_operand({"add0": 8, "mean0": 6})
        {'add0:0': 8, 'add0:1': 8, 'mean0:0': 6}
    """
    named = {Site.named(name): value for name, value in sites.items()}
    return {site.operand_name(i): value for site, value in named.items() for i in range(site.operands)}


def kind_of_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Return what kind of site a call of a function on tensors is; None if it is none.

    Sums are those of two floating-point tensors of one shape; biases, masks and positions have another.
    """
    kind = _KIND.get(function)
    if kind is None or len(args) < _OPERANDS[kind]:
        return None
    read = args[: _OPERANDS[kind]]
    if not all(isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 2 for x in read):
        return None
    if kind == "add" and (read[0].shape != read[1].shape or kwargs):
        return None
    return kind


def no_counts() -> dict[str, int]:
    """Return each kind of operation with how often it was done before anything was: never."""
    return dict.fromkeys(_FUNCTIONS, 0)


class Operations(TorchFunctionMode):
    """Lets a function see and change what sites read, while it is active."""

    def __init__(self, change: Callable[[str, int, int, Tensor], Tensor]) -> None:
        """Call ``change(kind, number, operand, tensor)`` for each tensor read; what it returns is read instead."""
        super().__init__()
        self.change = change
        self.counts = no_counts()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute what was called, of changed operands if it is a site."""
        named = kwargs or {}
        kind = kind_of_call(func, args, named)
        if kind is None:
            return func(*args, **named)
        number = self.counts[kind]
        self.counts[kind] = number + 1
        read = list(args[: _OPERANDS[kind]])
        in_place = func in (Tensor.add_, Tensor.__iadd__)
        if in_place:  # what is read outlives what is written over it
            read[0] = read[0].clone()
        read = [self.change(kind, number, index, x) for index, x in enumerate(read)]
        if in_place:
            read[0] = args[0].copy_(read[0])
        return func(*read, *args[len(read) :], **named)


class Followed(TorchFunctionMode):
    """Reports every function that is called on tensors, while it is active."""

    def __init__(self, report: Callable[[str | None, Callable[..., Any], list[Tensor]], Callable[[Any], None]]) -> None:
        """Call ``report(kind, function, tensors)`` before it runs, and what that returns with its output.

        The kind is that of a site, None for other functions; tensors are those given by position.
        """
        super().__init__()
        self.report = report

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute what was called, and report it."""
        named = kwargs or {}
        after = self.report(kind_of_call(func, args, named), func, [x for x in args if isinstance(x, Tensor)])
        output = func(*args, **named)
        after(output)
        return output
