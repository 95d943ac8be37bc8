"""What a packed model really costs, counted from its tensors, and whether that is within the budget of its policy."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from torch import nn

from ..allocation import Allocation
from ..allocation.preparation import Preparation
from ..errors import BudgetExceededError
from ..schemes import WeightScheme
from .inspection import packed_layers, policy_of, stored_bytes
from .packed import STORED_INPUT

_ROUNDING = 1e-9
"""Relative; of sums of measured costs."""


StoredBits = Callable[[nn.Module, WeightScheme], int]
"""(layer, scheme) to the bits that a runtime's file holds it in."""


def recounted(
    model: nn.Module, allocation: Allocation, unused_bytes: int = 0, stored_bits: StoredBits | None = None
) -> dict[str, float]:
    """Return every cost of a packed model: bytes from its tensors, the others from the schemes of its layers.

    Args:
        model: A packed model.
        allocation: What its policy was chosen by; it says how costs are counted.
        unused_bytes: Bytes of weights that no output is computed with, which count in no budget.
        stored_bits: Bits of a layer in the file of the runtime that the policy is for; None: as packed.

    Raises:
        ValueError: If the allocation does not carry the problem that it solves, or the layers do not follow its groups.
    """
    prepared = allocation.preparation
    if not isinstance(prepared, Preparation):
        raise ValueError("There is no budget to count by; use an allocation as `allocate` made it.")
    policy = policy_of(model)
    costs = dict(prepared.facts(policy, allocation.objective)["costs"])
    stored, by_group = stored_bytes(model), dict[str, dict[int, int]]()
    for layer in packed_layers(model).values():
        own = by_group.setdefault(str(layer.group), {})
        if stored_bits is None:
            own |= {id(value): value.numel() * value.element_size() for value in layer.stored_tensors().values()}
        else:  # of layers that share a weight the dearest counts
            key, size = id(layer.packed_codes), ceil(stored_bits(layer, layer.scheme) / 8)
            own[key] = max(own.get(key, 0), size)
            own |= {id(value): value.nbytes for name in STORED_INPUT if (value := layer._buffers.get(name)) is not None}
    packed = sum(sum(sizes.values()) for sizes in by_group.values())
    weights = sum(group.weight_count for group in prepared.taylor.groups)
    bits_beside = costs.get("device_bytes", 0.0) - costs["bytes"]
    costs["average_bits"] = 8 * packed / max(weights, 1)
    costs["bytes"] = float(packed + stored.floating - unused_bytes)
    costs["largest_group_bytes"] = float(max(sum(sizes.values()) for sizes in by_group.values()))
    if "device_bytes" in costs:
        costs["device_bytes"] = costs["bytes"] + bits_beside
    return costs


def refuse_exceeded(
    model: nn.Module, allocation: Allocation, unused_bytes: int = 0, stored_bits: StoredBits | None = None
) -> None:
    """Refuse a packed model that takes more than its budget allows, whatever was computed before it was packed.

    Args:
        model: A packed model.
        allocation: What its policy was chosen by.
        unused_bytes: Bytes of weights that no output is computed with, which count in no budget.
        stored_bits: As for `recounted`.

    Raises:
        BudgetExceededError: If a cost, counted anew, exceeds its bound; names both.
    """
    for name, cost in recounted(model, allocation, unused_bytes, stored_bits).items():
        limit = allocation.limits.get(name)
        if limit is not None and cost > limit + _ROUNDING * abs(limit):
            raise BudgetExceededError(
                f"The packed model takes {name}={cost:.10g}, counted from its tensors, and the budget allows "
                f"{limit:.10g}. Lower the budget by the difference, and please report this model."
            )
