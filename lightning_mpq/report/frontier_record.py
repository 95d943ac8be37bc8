"""The policies of other budgets, and all candidates of the chosen one, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PolicyPoint:
    """One policy that may be looked at beside the chosen one.

    Attributes:
        name: "chosen", "frontier", "uniform 3 bits" or "additive".
        choice: Position of the chosen candidate among those of each group, in the order of ``Report.groups``.
        average_bits: Bits stored per quantized weight, scales and zero points included.
        stored_bytes: Bytes of the whole model: packed weights and all that stays in float.
        predicted_loss: Change of the loss that the Taylor model predicts.
        standard_error: Standard error of the prediction; None if unknown.
        lower_bound: Proved: no policy of the same budget is predicted to lose less; None where none was solved for.
        additive_loss: Predicted loss of the policy that treats groups one by one, at the same budget; None likewise.
    """

    name: str
    choice: tuple[int, ...]
    average_bits: float
    stored_bytes: float
    predicted_loss: float
    standard_error: float | None = None
    lower_bound: float | None = None
    additive_loss: float | None = None


@dataclass(frozen=True)
class GroupCandidates:
    """The candidates of one group, and its strongest partners under the chosen policy.

    Attributes:
        schemes: Position of each candidate's scheme in ``FrontierRecord.schemes``.
        stored_bytes: Bytes of each.
        alone: Loss predicted if this group alone were quantized so.
        instead: Change of the predicted loss if the group took this candidate, all others as chosen.
        pairs: (position of the other group, loss that the pair adds; negative if errors cancel), strongest first.
    """

    schemes: tuple[int, ...]
    stored_bytes: tuple[float, ...]
    alone: tuple[float, ...]
    instead: tuple[float, ...]
    pairs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class PairBlocks:
    """What pairs of groups add to the predicted loss of the chosen policy, summed over blocks of neighbouring groups.

    Attributes:
        names: Name of each block.
        loss: Measured sums, [B, B], symmetric, before any shrinkage: between the groups of two blocks; on the
            diagonal all that a block adds by itself.
        noise: Scale of their standard errors, [B, B], as if entries erred independently; None if unknown.
    """

    names: tuple[str, ...]
    loss: tuple[tuple[float, ...], ...]
    noise: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class FrontierRecord:
    """What a report knows of other budgets.

    Attributes:
        schemes: Every scheme that some candidate has, as in a policy's JSON, with its short ``name``.
        candidates: Those of each group, in the order of ``Report.groups``.
        points: Policies by ascending bytes: the frontier and the chosen one.
        others: Policies to compare with: of one width everywhere, and additive ones.
        tied: Positions of groups that must be equal by a rule.
        blocks: What pairs of groups add.
        note: Why there are no policies of other budgets; empty if there are.
    """

    schemes: tuple[Mapping[str, Any], ...]
    candidates: tuple[GroupCandidates, ...]
    points: tuple[PolicyPoint, ...]
    others: tuple[PolicyPoint, ...] = ()
    tied: tuple[tuple[int, ...], ...] = ()
    blocks: PairBlocks | None = None
    note: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FrontierRecord:
        """Build a record from what ``asdict`` returned, also after a detour through JSON."""
        blocks = values.get("blocks")
        return cls(
            schemes=tuple(values["schemes"]),
            candidates=tuple(GroupCandidates(**_as_tuples(row)) for row in values["candidates"]),
            points=tuple(PolicyPoint(**_as_tuples(row)) for row in values["points"]),
            others=tuple(PolicyPoint(**_as_tuples(row)) for row in values.get("others", ())),
            tied=tuple(map(tuple, values.get("tied", ()))),
            blocks=None if blocks is None else PairBlocks(**_as_tuples(blocks)),
            note=str(values.get("note", "")),
        )


def _as_tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with tuples where JSON has lists."""
    return {name: _tuple(value) for name, value in row.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, (list, tuple)) else value
