"""What it costs that neighbouring layers have inputs of other widths, as part of what is minimised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from math import isfinite

import torch

from ..curvature.taylor_model import TaylorModel
from ..tools.checks import check_list, shown


def with_conversions(
    model: TaylorModel, loss: float, neighbours: Iterable[tuple[str, str]] | None = None
) -> TaylorModel:
    """Return a Taylor model in which neighbours whose inputs differ in width pay a price.

    A runtime that multiplies integers converts between layers whose inputs have other widths, or stay in float. The
    price is added to the terms of such pairs of candidates, so that `allocate` counts it exactly, and what is predicted
    of the model that is returned is the loss and all prices together, without the errors of blocks of the data;
    ``model.predict`` tells the loss alone.

    Args:
        model: A Taylor model.
        loss: What one conversion may cost, in the unit of the model's loss.
        neighbours: Pairs of groups, in any order, the one reading what the other computes; None: each group and the
            next one.

    Raises:
        ValueError: If the price is negative or not finite, or a pair is not one of two groups of the model.

    Example::

        allocation = mpq.allocate(mpq.allocation.with_conversions(taylor, loss=1e-4), budget)
        taylor.predict(allocation.policy).value         # without the prices
    """
    if isinstance(loss, bool) or not isinstance(loss, (int, float)) or not isfinite(loss) or loss < 0:
        raise ValueError(f"The price of a conversion is a loss, 0 or more, got {shown(loss)}.")
    names = [group.name for group in model.groups]
    given = pairwise(names) if neighbours is None else neighbours
    check_list("neighbours", given, [("one", "other")])
    members: dict[str, list[int]] = {name: [] for name in names}
    for index, candidate in enumerate(model.candidates):
        members[candidate.group].append(index)
    widths = torch.tensor([candidate.scheme.input_bits or 0 for candidate in model.candidates])
    price = torch.zeros_like(model.curvature)
    for pair in given:
        known = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(name in names for name in pair)
        if not known or pair[0] == pair[1]:
            raise ValueError(
                f"Neighbours are pairs of two groups of the model, got {shown(pair)}. Groups: {', '.join(names)}."
            )
        one, other = (torch.tensor(members[name]) for name in pair)
        differ = loss * (widths[one][:, None] != widths[other]).to(price)
        price[one[:, None], other], price[other[:, None], one] = differ, differ.T
    return replace(model, curvature=model.curvature + price, sums=None)
