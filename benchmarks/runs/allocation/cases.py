"""The problems that are solved, and how far they are meant to be proved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ...problems.allocation_instances import resnet20, synthetic
from ...recorded_instances.files import recorded_problem
from ...tools.results import Row
from ...tools.targets import Target, at_most

CURVATURES = ("hessian", "gauss_newton", "fisher")
BUDGETS = (2.25, 2.5, 3.0, 4.0)
RECORDED = {
    "minilm-nearest": 2.0,
    "minilm-second_order": 2.0,
    "efficientnet_lite0-nearest": 2.0,
    "smollm2-nearest": 20.0,
}
"""Recorded models and the seconds that each may take."""
ABOVE = (0.5, 1.0, 2.0)
"""Average bits above the least possible, which overheads of scales decide."""


@dataclass(frozen=True)
class Case:
    """A problem and its target.

    Attributes:
        name: What it is called in tables.
        problem: Makes the problem, or whatever else is solved.
        time_limit: Seconds of processor time.
        most_gap: Relative gap that is to be proved.
        most_seconds: Seconds of processor time within which.
        additive: Whether the terms between groups are left out.
    """

    name: str
    problem: Callable[[], object]
    time_limit: float
    most_gap: float
    most_seconds: float
    additive: bool = False


def cases() -> list[Case]:
    """Return the measured model of ResNet-20 at several budgets, and recorded ones, synthetic ones up to 448 groups."""
    found = [
        Case(f"resnet20 {curvature} at {bits:g} bits", partial(resnet20, curvature, bits), 60, 1e-3, 5)
        for curvature in CURVATURES
        for bits in BUDGETS
    ]
    found += [
        Case(f"{name} at {above:g} bits above the least", partial(recorded_problem, name, above), 60, 1e-3, most)
        for name, most in RECORDED.items()
        for above in ABOVE
    ]
    for family in ("weak", "mid", "strong", "pos", "indef"):
        gap = 1e-2 if family == "indef" else 1e-3
        found.append(Case(f"{family} 54 x 7 at 3 bits", partial(synthetic, family, 54, 7, 3.0), 90, gap, 30))
    mid = partial(synthetic, "mid")
    found.append(Case("mid 224 x 7 at 3 bits, additive", partial(mid, 224, 7, 3.0), 30, 1e-3, 1, additive=True))
    found.append(Case("mid 210 x 7 at 3 bits", partial(mid, 210, 7, 3.0), 55, 5e-2, 60))
    measured = partial(synthetic, "weakly measured")
    for groups, schemes, gap, seconds in (
        (60, 7, 1e-3, 2),
        (211, 7, 1e-3, 20),
        (448, 7, 1e-2, 60),
        (448, 14, 5e-2, 120),
    ):
        name = f"weakly measured {groups} x {schemes} at 3 bits"
        found.append(Case(name, partial(measured, groups, schemes, 3.0), 0.95 * seconds, gap, seconds))
    return found


LARGEST = "weakly measured 2000 x 7 at 3 bits, limit of 60 s"
"""14,000 candidates, on which a time limit and memory are to be kept, whatever is proved."""
OVERRUN, MATRICES = 1.2, 3.0
"""Of a time limit that is taken at most, and K x K matrices of doubles in memory, that of the problem counted."""


def largest() -> Case:
    """Return the problem of 14,000 candidates."""
    return Case(LARGEST, partial(synthetic, "weakly measured", 2000, 7, 3.0), 60, 1.0, 60 * OVERRUN)


def quick_cases() -> list[Case]:
    """Return two that take a second together."""
    return [case for case in cases() if case.name == "resnet20 fisher at 3 bits"] + [
        Case("mid 12 x 7 at 3 bits", partial(synthetic, "mid", 12, 7, 3.0), 5, 1e-3, 5)
    ]


def frontier_name(budgets: int) -> str:
    """Return what a sweep of so many budgets is called in tables."""
    return f"resnet20 fisher frontier of {budgets} budgets"


def targets(rows: list[Row]) -> list[Target]:
    """Return what was meant to be proved beside what was, and whether limits of time and memory were kept."""
    known = {case.name: case for case in [*cases(), largest()]}
    bounds = {name: (case.most_gap, case.most_seconds) for name, case in known.items()}
    bounds[frontier_name(30)] = (1e-3, 60)
    ours = [row for row in rows if row["solver"] == "lightning_mpq" and row["instance"] in bounds]
    found = []
    for row in ours:
        most_gap, most_seconds = bounds[row["instance"]]
        gap, seconds = row["gap"], row["processor_seconds"]
        met = gap is not None and gap <= most_gap * (1 + 1e-9) and seconds <= most_seconds
        bound = f"gap <= {most_gap:.1%} within {most_seconds:g} s on one core"
        measured = f"{gap:.3%} in {seconds:.2f} s" if gap is not None else "no bound"
        found.append(Target(row["instance"], bound, measured, met))
        if (matrices := row.get("memory")) is not None:
            most = f"at most {MATRICES:g} matrices of candidates in memory"
            found.append(Target(row["instance"], most, f"{matrices:g}", matrices <= MATRICES))
    limits = {name: case.time_limit for name, case in known.items()}
    shares = [row["processor_seconds"] / limits[row["instance"]] for row in ours if row["instance"] in limits]
    found.append(at_most("largest time taken, in time limits", max(shares), OVERRUN))
    return found
