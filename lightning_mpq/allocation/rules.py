"""Rules on a policy beside its budget: what must be equal, within bounds, fixed, or of few widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..groups.choices import Choices
from ..schemes import LayerScheme, WeightScheme
from ..tools.checks import check_list, check_mapping, is_number, shown
from ..tools.patterns import matching
from .solver.problem import Mask


@dataclass(frozen=True)
class Rules:
    r"""What a policy must look like.

    A pattern is a group's name, a shell glob on names, or a regular expression after ``re:``.

    Attributes:
        equal: Sets of patterns; all groups that a set matches get the same width (residual ties, fused QKV).
        min_bits: Pattern to the least width.
        max_bits: Pattern to the largest width.
        min_input_bits: Pattern to the least width of inputs; inputs in float are wider than any.
        max_input_bits: Pattern to the largest width of inputs.
        fixed: Pattern to the one width, or the one scheme, that is used.
        max_distinct_bits: A policy may use at most this many distinct widths.
        block_depth: Groups whose names share their first so many dotted parts form a block, and a block has
            one width: widths step only from block to block.

    Example:
        Queries, keys and values of all blocks share a width, the head has 4 bits or more, and there are two widths:

        >>> rules = Rules(equal=[("*.q", "*.k", "*.v")], min_bits={"head": 4}, max_distinct_bits=2)
    """

    equal: Sequence[Sequence[str]] = ()
    min_bits: Mapping[str, int] = field(default_factory=dict)
    max_bits: Mapping[str, int] = field(default_factory=dict)
    min_input_bits: Mapping[str, int] = field(default_factory=dict)
    max_input_bits: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, int | WeightScheme | LayerScheme] = field(default_factory=dict)
    max_distinct_bits: int | None = None
    block_depth: int | None = None

    def __post_init__(self) -> None:
        """Refuse counts that are no counts."""
        for name in ("max_distinct_bits", "block_depth"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive integer, got {shown(value)}.")
        for name in ("min_bits", "max_bits", "min_input_bits", "max_input_bits", "fixed"):
            check_mapping(name, getattr(self, name), {"*.head": 8})
            schemes = (WeightScheme, LayerScheme) if name == "fixed" else ()
            for pattern, value in getattr(self, name).items():
                if not is_number(value, whole=True) and not isinstance(value, schemes):
                    also = " or a scheme" if schemes else ""
                    raise ValueError(f"{name}[{pattern!r}] must be a whole number of bits{also}, got {shown(value)}.")
        check_list("equal", self.equal, [["*.q", "*.k"]])
        if any(isinstance(patterns, str) for patterns in self.equal):
            raise ValueError(
                "equal must be a list of lists of patterns, such as [['*.q', '*.k']]; got a single pattern in it."
            )


def allowed_candidates(choices: Choices, rules: Rules) -> Mask:
    """Return which candidates the rules on single groups allow, shape [K].

    Raises:
        ValueError: If two rules leave a group nothing; both are named.
    """
    names = [group.name for group in choices.groups]
    allowed = np.ones(len(choices.candidates), dtype=bool)
    last_rule: dict[str, str] = {}
    owner = np.array([c.group for c in choices.candidates])
    for rule in ("fixed", "min_bits", "max_bits", "min_input_bits", "max_input_bits"):
        patterns: Mapping[str, int | WeightScheme | LayerScheme] = getattr(rules, rule)
        for pattern, value in patterns.items():
            for name in matching(pattern, names, rule, "group"):
                keeps = np.array([_keeps(rule, value, c.scheme) for c in choices.candidates])
                mine = owner == name
                text = f"{rule}[{pattern!r}] = {value}"
                if not (allowed & keeps & mine).any():
                    own = [c.scheme for c in choices.candidates if c.group == name]
                    widths = sorted({_input_bits(s) if "input" in rule else s.bits for s in own})
                    offered = f"{widths} bits" + " of inputs (32 is float)" * ("input" in rule)
                    before = f" after {last_rule[name]}" if name in last_rule else ""
                    raise ValueError(
                        f"{text} leaves group {name!r} no candidate{before}; it is offered {offered}. Relax one "
                        "of them."
                    )
                allowed &= keeps | ~mine
                last_rule[name] = text
    return allowed


def _keeps(rule: str, value: int | WeightScheme | LayerScheme, scheme: LayerScheme) -> bool:
    """Return whether a rule allows a scheme."""
    if isinstance(value, (WeightScheme, LayerScheme)):
        return value in (scheme, scheme.weight)
    if rule == "fixed":
        return scheme.bits == value
    bits = _input_bits(scheme) if "input" in rule else scheme.bits
    return bits >= value if rule.startswith("min") else bits <= value


def _input_bits(scheme: LayerScheme) -> int:
    return 32 if scheme.input_bits is None else scheme.input_bits


def tied_groups(choices: Choices, rules: Rules) -> list[list[int]]:
    """Return the sets of groups that take one width together, each group in one set, in order of first members."""
    names = [group.name for group in choices.groups]
    parent = list(range(len(names)))

    def root(group: int) -> int:
        while parent[group] != group:
            group = parent[group]
        return group

    for patterns in rules.equal:
        members = [names.index(name) for pattern in patterns for name in matching(pattern, names, "equal", "group")]
        for member in members[1:]:
            low, high = sorted((root(members[0]), root(member)))
            parent[high] = low
    if rules.block_depth is not None:
        blocks: dict[tuple[str, ...], int] = {}
        for position, name in enumerate(names):
            first = blocks.setdefault(tuple(name.split(".")[: rules.block_depth]), position)
            low, high = sorted((root(first), root(position)))
            parent[high] = low
    sets: dict[int, list[int]] = {}
    for position in range(len(names)):
        sets.setdefault(root(position), []).append(position)
    return [sets[first] for first in sorted(sets)]
