"""Policies over weights and inputs to compare with, the same widths everywhere, and what policies cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import lightning_mpq as mpq
from lightning_mpq.curvature import TaylorModel


def uniform_policies(taylor: TaylorModel, widths: Iterable[tuple[int, int]]) -> dict[str, mpq.BitPolicy]:
    """Return "W4A8" and so on to the policy of the first such candidate of each group, for widths that are offered.

    Args:
        taylor: Knows the candidates.
        widths: Bits of weights and of inputs.
    """
    of_widths: dict[tuple[int, int | None], dict[str, int]] = {}
    for index, candidate in enumerate(taylor.candidates):
        own = of_widths.setdefault((candidate.scheme.bits, candidate.scheme.input_bits), {})
        own.setdefault(candidate.group, index)
    return {f"W{w}A{a}": taylor.policy(list(of_widths[w, a].values())) for w, a in widths if (w, a) in of_widths}


def bit_operations(policy: mpq.BitPolicy, macs: Mapping[str, float]) -> float:
    """Return multiply-accumulates times bits of weights and inputs, of all groups; inputs in float have 32."""
    return sum(macs[group] * scheme.bits * (scheme.input_bits or 32) for group, scheme in policy.items())
