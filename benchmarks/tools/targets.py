"""A figure that something was meant to reach, whose figure that is, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Origin = Literal["goal", "promise", "chance"]
ORIGINS: dict[Origin, str] = {
    "goal": "a figure that this project set itself in an issue; another one would be as defensible",
    "promise": "what the package says of itself, such as that a budget is kept or that a step does no harm",
    "chance": "the size of a difference that chance alone explains",
}
"""Whose figure a bound is: each was set by this project."""


@dataclass(frozen=True)
class Target:
    """A bound beside what was measured.

    Attributes:
        name: What is measured, with its unit.
        bound: The bound in words, such as ``"<= 0.1 %"``.
        measured: The measured figure; None if it was not measured.
        met: Whether the measured figure keeps the bound.
        origin: Whose bound it is, see `ORIGINS`.
    """

    name: str
    bound: str
    measured: float | str | None
    met: bool
    origin: Origin = "goal"


def at_most(name: str, measured: float, most: float, origin: Origin = "goal", note: str = "") -> Target:
    """Return the target of a figure that must not exceed a bound.

    Example:
        >>> at_most("points lost", 0.25, 0.5)
        Target(name='points lost', bound='<= 0.5', measured=0.25, met=True, origin='goal')
    """
    return Target(name, f"<= {most:.4g}{note}", measured, measured <= most, origin)


def at_least(name: str, measured: float, least: float, origin: Origin = "goal", note: str = "") -> Target:
    """Return the target of a figure that must not fall below a bound."""
    return Target(name, f">= {least:.4g}{note}", measured, measured >= least, origin)


def between(name: str, measured: float, least: float, most: float, origin: Origin = "goal") -> Target:
    """Return the target of a figure that must lie in a range."""
    return Target(name, f"{least:g} .. {most:g}", measured, least <= measured <= most, origin)


def print_targets(targets: Sequence[Target], quick: bool = False) -> None:
    """Print one line for each target; that there are some, if a quick run has measured too little for them."""
    if quick:
        print(f"Targets: {len(targets)}; a quick run says nothing about them.")
        return
    for target in targets:
        found = f"{target.measured:.4g}" if isinstance(target.measured, float) else target.measured
        print(f"{'met    ' if target.met else 'NOT MET'} {target.name}: {found} ({target.origin}: {target.bound})")
