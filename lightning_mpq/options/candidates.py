"""What may be quantized, what shares a decision, and which schemes are offered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..grids.registry import DEFAULT_GRIDS
from ..groups.candidates import Candidate, OfferedInput, make_candidates, offered_inputs, offered_schemes
from ..groups.fused import Fuse, check_fuse
from ..groups.groups import LayerGroups
from ..schemes import WeightScheme
from ..tools.checks import check_one_of


@dataclass(frozen=True)
class CandidateOptions:
    """What may be quantized, what shares a decision, and which schemes are offered.

    Attributes:
        bits: Widths offered to every group.
        rounding: How a width is rounded where ``schemes`` is None: "second_order" finds codes, clip range and grid of
            each layer on the calibration batches, "nearest" needs the weight alone and takes clip range and grid
            of the least squared weight error.
        grids: Grids to choose from, for each group and width.
        granularities: What may share a scale: "channel", "tensor", or the length of a block of columns; several make
            one candidate each for every width, and the program chooses by what their scales cost and gain. None:
            "channel", and for wide Linear layers blocks of 128, 64 or 32 columns beside it.
        schemes: Schemes offered instead of ``bits``.
        inputs: How inputs of Linear, Conv and ConvTranspose layers may be quantized: widths of 4 to 8 bits,
            `InputScheme`, or "float"; each is offered with every scheme of the weight. None: inputs stay in float.
        groups: Group name to patterns of layers that share one scheme (see `find_groups`).
        keep_float: Patterns of layers that stay in float.
        fixed_bits: Pattern to the one width its layers get.
        min_bits: Pattern to the least width its layers may get.
        max_bits: Pattern to the largest width its layers may get.
        fuse: Sets of names of layers in one module that share a decision, such as
            ``[("q_proj", "k_proj", "v_proj")]``, or "vllm" for those that vLLM fuses (see `find_groups`).

    Example::

        candidates = mpq.CandidateOptions(bits=(2, 3, 4, 8), granularities=("channel", 64), keep_float=["head"])
        mpq.MixedPrecisionQuantization(3.0, candidates=candidates)
    """

    bits: Sequence[int] = (2, 3, 4, 5, 6, 7, 8)
    rounding: Literal["second_order", "nearest"] = "second_order"
    grids: Sequence[str] = DEFAULT_GRIDS
    granularities: Sequence[str | int] | None = None
    schemes: Sequence[WeightScheme] | None = None
    inputs: Sequence[OfferedInput] | None = None
    groups: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    keep_float: Sequence[str] = ()
    fixed_bits: Mapping[str, int] = field(default_factory=dict)
    min_bits: Mapping[str, int] = field(default_factory=dict)
    max_bits: Mapping[str, int] = field(default_factory=dict)
    fuse: Fuse = ()

    def __post_init__(self) -> None:
        """Refuse, before anything is trained, what could not be offered after it."""
        check_one_of("rounding", self.rounding, ("second_order", "nearest"))
        offered_inputs(self.inputs)
        check_fuse(self.fuse)
        if not self.offered_schemes():
            raise ValueError(
                "There is no scheme to offer: give at least one of bits, of grids that have levels for them, and of "
                "granularities; or schemes."
            )

    def rules(self) -> dict[str, Any]:
        """Return what `find_groups` takes."""
        own = ("bits", "rounding", "grids", "granularities", "schemes", "inputs")
        return {key: value for key, value in vars(self).items() if key not in own}

    def offered_schemes(self) -> Sequence[WeightScheme]:
        """Return the schemes offered to every group that the rules allow their widths."""
        if self.schemes is not None:
            return self.schemes
        shared = ("channel",) if self.granularities is None else self.granularities
        return offered_schemes(self.bits, self.rounding, shared, self.grids)

    def candidates(self, groups: LayerGroups) -> tuple[Candidate, ...]:
        """Return what may be chosen for groups; see `make_candidates`."""
        return make_candidates(
            groups,
            self.bits,
            rounding=self.rounding,
            granularities=self.granularities,
            grids=self.grids,
            schemes=self.schemes,
            inputs=self.inputs,
        )
