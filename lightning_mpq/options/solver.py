"""How the bits are assigned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..allocation import Rules
from ..allocation.allocate import check_settings
from ..tools.checks import check_integer, shown


@dataclass(frozen=True)
class SolverOptions:
    """How the bits are assigned.

    Attributes:
        objective: "quadratic" (with all pairs of groups) or "additive" (each group alone).
        solver: "highs" or "cbc", both through python-mip.
        time_limit: Seconds after which the best policy so far is returned with its proven gap.
        gap: Relative gap at which a policy counts as optimal.
        seed: Seed of the local search.
        rules: Groups that must be equal, least and most bits, few distinct widths; see `Rules`.

    Example::

        solver = mpq.SolverOptions(time_limit=60, rules=mpq.Rules(equal=[("*.q", "*.k", "*.v")]))
        mpq.MixedPrecisionQuantization(3.0, solver=solver)
    """

    objective: Literal["quadratic", "additive"] = "quadratic"
    solver: Literal["highs", "cbc"] = "highs"
    time_limit: float = 10.0
    gap: float = 1e-3
    seed: int = 0
    rules: Rules | None = None

    def __post_init__(self) -> None:
        """Refuse, before anything is trained, what could not be solved after it."""
        check_settings(self.objective, self.solver, self.time_limit, self.gap)
        check_integer("seed", self.seed)
        if self.rules is not None and not isinstance(self.rules, Rules):
            raise ValueError(f"rules must be a Rules(...), got {shown(self.rules)}.")
