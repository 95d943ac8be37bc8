"""Which targets can hold the chosen policy, and what keeps the others from it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..groups.groups import LayerGroup
from ..policy import BitPolicy
from ..report.rows import TargetRow
from ..targets import Target
from ..targets.menu import obstacles, stored_bytes_in
from ..targets.registry import TARGETS

_SHOWN = 3
"""What keeps a target from a policy is said of so many layers."""


def target_rows(
    model: nn.Module, groups: Iterable[LayerGroup], policy: BitPolicy, own: Target
) -> tuple[TargetRow, ...]:
    """Return one row for the target that the policy was decided for, and one for each that is known by name.

    Args:
        model: The model, float or packed.
        groups: Its groups.
        policy: The policy.
        own: The target that the policy was decided for.
    """
    known = [kind() for name, kind in TARGETS.items() if name != own.name]
    rows = []
    for target in (own, *known):
        wrong = obstacles(target, model, policy)
        stored = None if wrong else stored_bytes_in(target, model, groups, policy)
        rows.append(TargetRow(target.name, not wrong, len(wrong), tuple(wrong[:_SHOWN]), stored))
    return tuple(rows)
