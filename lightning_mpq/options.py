"""Settings of each stage as plain values, so that a callback or a YAML can carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .curvature.likelihood import Likelihood
from .policy import WeightScheme


@dataclass(frozen=True)
class CandidateOptions:
    """What may be quantized, what shares a decision, and which schemes are offered.

    Attributes:
        bits: Widths offered to every group, each with a default scheme.
        schemes: Schemes offered instead of ``bits``.
        groups: Group name to patterns of layers that share one scheme (see `find_groups`).
        keep_float: Patterns of layers that stay in float.
        fixed_bits: Pattern to the one width its layers get.
        min_bits: Pattern to the least width its layers may get.
        max_bits: Pattern to the largest width its layers may get.
    """

    bits: Sequence[int] = (2, 3, 4, 5, 6, 7, 8)
    schemes: Sequence[WeightScheme] | None = None
    groups: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    keep_float: Sequence[str] = ()
    fixed_bits: Mapping[str, int] = field(default_factory=dict)
    min_bits: Mapping[str, int] = field(default_factory=dict)
    max_bits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CurvatureOptions:
    """How the loss is measured.

    Attributes:
        estimator: "fisher" (one backward pass), "hessian" (exact, of the task loss), "gauss_newton", "secant".
        loss: "divergence" from the float model, "task", or None for the estimator's own default.
        draws: Labels drawn per sample by ``fisher``.
        likelihood: What the outputs mean: "auto" guesses and says so, or e.g. ``Categorical(class_dim=1)``.
        seed: Seed of the drawn labels.
    """

    estimator: Literal["fisher", "hessian", "gauss_newton", "secant"] = "fisher"
    loss: Literal["divergence", "task"] | None = None
    draws: int = 1
    likelihood: Likelihood | Literal["auto"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class SolverOptions:
    """How the bits are assigned.

    Attributes:
        objective: "quadratic" (with all pairs of groups) or "additive" (each group alone).
        solver: "highs" or "cbc", both through python-mip.
        time_limit: Seconds after which the best plan so far is returned with its proven gap.
        gap: Relative gap at which a plan counts as optimal.
        seed: Seed of the local search.
    """

    objective: Literal["quadratic", "additive"] = "quadratic"
    solver: Literal["highs", "cbc"] = "highs"
    time_limit: float = 10.0
    gap: float = 1e-3
    seed: int = 0
