"""How much a policy depends on the samples that were profiled: the program solved again on samples drawn again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..curvature.resampling import blocks_of, resampled
from ..curvature.taylor_model import TaylorModel
from ..tools.progress import Progress
from .solver.engine import solve
from .solver.local_search import LocalSearch, first_selection, iterated_local_search
from .solver.problem import Indices, Mask, Problem
from .solver.reduction import Reduction

_FEW = 12
"""Up to so many groups the best policy of a draw is proved; of more, local searches look for it."""
_NEAR = 0.01
"""A policy within this of the best one, relative to its loss, is as good."""
_EQUAL = 1e-7
"""Relative differences between blocks that single precision alone explains."""


@dataclass(frozen=True)
class Stability:
    """What would become of a policy, had other samples been profiled.

    Attributes:
        resamples: How often samples were drawn again.
        blocks: Blocks of data that were drawn from; a sample each, of up to 16 samples.
        shares: Group to the share of resamples in which its width is the same.
        spread: Standard deviation of the policy's predicted loss.
        interval: What nine tenths of the policy's predicted losses lie between.
        near_best: Share of resamples in which the policy is within 1 % of the best one found.
        excess: Median of how much worse than the best one found it is, relative to its loss.
        note: What to think of these figures, in a sentence; empty if there is nothing to say.

    Example::

        stability = allocation.stability(resamples=200)
        print(stability)                                   # one line
        min(stability.shares, key=stability.shares.get)    # the group that is least sure of its width
    """

    resamples: int
    blocks: int
    shares: Mapping[str, float]
    spread: float
    interval: tuple[float, float]
    near_best: float
    excess: float
    note: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Stability:
        """Return what `to_dict` was made of."""
        low, high = values["interval"]
        return cls(**{**{key: value for key, value in values.items() if key != "kept"}, "interval": (low, high)})

    @property
    def kept(self) -> float:
        """How much of the policy stays the same on average, the mean of the shares."""
        return float(np.mean(list(self.shares.values())))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {**asdict(self), "interval": list(self.interval), "kept": self.kept}

    def __str__(self) -> str:
        """Return one line, and the note."""
        unsure = sorted((share, name) for name, share in self.shares.items() if share < 0.5)
        named = ", ".join(name for _, name in unsure[:3]) + (", ..." if len(unsure) > 3 else "")
        line = (
            f"On {self.resamples} redraws of the samples {self.kept:.0%} of the groups keep their width on average"
            f"{f' (least sure: {named})' if unsure else ''}, the policy is within 1 % of the best in "
            f"{self.near_best:.0%} (median {self.excess:+.2%}), and its predicted loss is {self.interval[0]:.4g} to "
            f"{self.interval[1]:.4g} in nine of ten."
        )
        return f"{line} {self.note}".strip()


def stability_of(
    taylor: TaylorModel,
    reduction: Reduction,
    problem: Problem,
    selection: Indices,
    *,
    additive: bool,
    widths: int | None,
    reference: float,
    resamples: int,
    seed: int,
    progress: Progress,
) -> Stability:
    """Draw samples again, and look for the best policy of each draw from the given one.

    No clock is asked: the seed decides the result.

    Args:
        taylor: The Taylor model, with its sums.
        reduction: From candidates to what may be chosen under the rules.
        problem: The problem that was solved.
        selection: The policy.
        additive: Whether pairs of groups are left out.
        widths: How many distinct widths a policy may have; others than the policy's own are then not tried.
        reference: Magnitude that excesses are measured against where the best loss is smaller.
        resamples: How often.
        seed: Decides draws and searches.
        progress: Called with the fraction done and a message.

    Raises:
        ValueError: If resamples is not positive, or the model was made from fewer than two samples.
    """
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise ValueError(f"resamples must be a positive integer, got {resamples!r}; 100 tell shares to within 5 %.")
    blocks = blocks_of(taylor)
    if blocks < 2:
        raise ValueError(
            "Stability asks what other samples would have given, and this Taylor model keeps sums over "
            f"{blocks} of them; profile at least 2 samples, 16 or more if it is to say much."
        )
    bits = reduction.bits
    allowed = np.isin(bits, bits[selection]) if widths is not None else np.ones(len(bits), dtype=bool)
    chosen, best, same = [], [], np.zeros(len(selection))
    random = np.random.default_rng([seed, 1])
    for number, (gradient, curvature) in enumerate(resampled(taylor, resamples, seed)):
        progress(number / resamples, "draw the samples again")
        drawn = reduction.problem(gradient, curvature)
        if additive:
            drawn = drawn.without_pairs
        found = _searched(drawn, selection, allowed, random)
        chosen.append(drawn.value(selection))
        best.append(drawn.value(found))
        same += bits[found] == bits[selection]
    values, least = np.array(chosen), np.array(best)
    excess = (values - least) / np.maximum(np.maximum(np.abs(least), reference), 1e-300)
    spread = float(values.std(ddof=1)) if resamples > 1 else 0.0
    low, high = np.quantile(values, [0.05, 0.95])
    names = [[taylor.candidates[i].group for i in reduction.members[choice]] for choice in selection]
    return Stability(
        resamples=resamples,
        blocks=blocks,
        shares={name: float(n / resamples) for tied, n in zip(names, same, strict=True) for name in tied},
        spread=spread,
        interval=(float(low), float(high)),
        near_best=float((excess <= _NEAR).mean()),
        excess=float(np.median(excess)),
        note=_note(blocks, taylor.samples, spread, float(np.abs(values).max())),
    )


def _searched(problem: Problem, selection: Indices, allowed: Mask, random: np.random.Generator) -> Indices:
    """Return the best selection that is found from the policy, or from what the additive program gives if better."""
    affordable = problem.drop_unaffordable(allowed)
    assert affordable is not None  # the policy itself keeps the budgets
    if problem.group_count <= _FEW:
        part, kept = problem.only(affordable)
        proved = solve(part, gap=_NEAR / 100, start=np.searchsorted(kept, selection))
        return kept[proved.selection]
    search = LocalSearch(problem, affordable)
    starts = [selection]
    if (other := first_selection(problem, affordable, search)) is not None:
        starts.append(other)
    found = []
    for start in starts:
        search.move_to(start)
        search.descend()
        found.append((problem.value(search.selection), search.selection.copy()))
    value, start = min(found, key=lambda pair: pair[0])
    best, least = iterated_local_search(search, start, random, kicks=20 + problem.group_count // 4)
    return best if least < value else start


def _note(blocks: int, samples: int, spread: float, magnitude: float) -> str:
    if spread <= _EQUAL * magnitude:
        return "All samples predict the same, so that nothing could change: profile other ones."
    if samples < 2 * blocks or blocks < 8:
        return f"{samples} samples in {blocks} blocks say little about others; profile more."
    return ""
