"""Products of inputs with a weight, however they are written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_MATRIX_PRODUCTS = (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm)


def input_and_weight(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Return the arguments ``input`` and ``weight`` of a call, given by place or by name; None where one is missing."""
    inputs, weight = (
        kwargs.get(name, args[place] if len(args) > place else None) for place, name in enumerate(("input", "weight"))
    )
    return inputs, weight


def product_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Tensor] | None:
    """Return inputs and weight, [..., out, in], of a call of a function that multiplies them; None of any other.

    Example:
        >>> x, weight = torch.ones(2, 3), torch.ones(4, 3)
        >>> inputs, rows = product_of(Tensor.__matmul__, (x, weight.T), {})
        >>> inputs is x, rows.shape == weight.shape
        (True, True)
    """
    if func is torch.nn.functional.linear:
        inputs, weight = input_and_weight(args, kwargs)
        return (inputs, weight) if isinstance(weight, Tensor) else None
    if func in _MATRIX_PRODUCTS and len(args) > 1 and isinstance(args[1], Tensor) and args[1].dim() > 1:
        return args[0], args[1].mT
    return None
