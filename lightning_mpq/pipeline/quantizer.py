"""Packs a model by one policy or another, and keeps what it has measured and rounded for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import nn

from ..inputs.calibrate import ranges_of_policy
from ..inputs.operands import Operands, schemes_by_owners
from ..inputs.operations import by_operand
from ..inputs.quantizer import InputRange
from ..network.calibration import Calibration
from ..network.loss_change import LossChange
from ..options import RepairOptions
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..repair.repair import Repair, Step, final_codes, rounds_in_sequence
from ..rounding.rounded_weights import RoundedWeights
from .kept_sequence import KeptSequence
from .temporary_packing import packed_unless_it_fails, temporarily_packed

RoundingOrder = Literal["independent", "sequential"]
"""Whether each layer is rounded by the float model's inputs, as candidates are, or after the layers before it."""


class Quantizer:
    """Packs a float model's layers by one policy or another, for a while or for good, and repairs it.

    What repair has to meet is measured on the float model when this object is made; codes are rounded when they are
    first asked for, and kept.

    Attributes:
        calibration: The float model, and its batches.
        rounded: The rounded weights that were profiled; None if all are rounded to nearest.
        options: What is repaired once weights are quantized.
        judge: Measures the loss on data that is not among the batches; None where nothing is held out by the caller.
        repair: Brings the packed model in line with the float one.
        check: Called with the model when it was packed for good, to raise what speaks against that.
    """

    check: Callable[[nn.Module], None] | None = None

    def __init__(
        self,
        calibration: Calibration,
        layers: Iterable[str],
        options: RepairOptions,
        rounded: RoundedWeights | None = None,
        judge: LossChange | None = None,
        cache_dir: str | Path | None = None,
        *,
        judged: bool = True,
    ) -> None:
        """Measure the float model as far as repair asks for it.

        Args:
            calibration: The float model, left as it was, and its batches.
            layers: Layers that may be quantized: their biases are corrected.
            options: What is repaired.
            rounded: The candidates' codes, if they are known.
            judge: Says on other data which repairs do harm; see `Repair`.
            cache_dir: Where layers that are rounded in sequence are kept.
            judged: As in `Repair`.
        """
        self._layers = tuple(layers)
        self.calibration, self.options, self.rounded, self.judge = calibration, options, rounded, judge
        self.repair = Repair(calibration, self._layers, options, judge, judged=judged)
        self._cache_dir = cache_dir
        self._kept: KeptSequence | None = None
        self._codes: dict[tuple[BitPolicy, RoundingOrder], Mapping[str, QuantizedRows]] = {}
        self._ranges: dict[BitPolicy, Mapping[str, InputRange]] = {}
        self._operands: dict[bool, Operands] = {}
        self._worse_in_sequence: set[BitPolicy] = set()

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.calibration.model

    def order(self, policy: BitPolicy) -> RoundingOrder:
        """Return how the codes to pack are rounded."""
        in_sequence = policy not in self._worse_in_sequence and rounds_in_sequence(policy, self.options)
        return "sequential" if in_sequence else "independent"

    def keep_independent(self, policy: BitPolicy) -> None:
        """Pack a policy from now on as candidates were rounded: rounded in sequence it was measured to be worse."""
        self._worse_in_sequence.add(policy)

    def tried_in_sequence(self, policy: BitPolicy) -> bool:
        """Tell whether a policy is rounded in sequence, or was until that was measured to be worse."""
        return rounds_in_sequence(policy, self.options)

    def codes(self, policy: BitPolicy, order: RoundingOrder | None = None) -> Mapping[str, QuantizedRows]:
        """Return codes by layer, by default those to pack; none where a weight is rounded by itself."""
        order = order or self.order(policy)
        if order == "independent" and self.rounded is not None:  # unpacked as they are read, and not kept
            return self.rounded.of_policy(policy)
        if (policy, order) not in self._codes:
            options = RepairOptions(sequential=order == "sequential", batchnorm=self.options.batchnorm)
            ranges = self.ranges(policy)
            kept = self._kept_sequence() if order == "sequential" else None
            self._codes[policy, order] = final_codes(self.calibration, policy, options, self.rounded, ranges, kept=kept)
        return self._codes[policy, order]

    def _kept_sequence(self) -> KeptSequence | None:
        """Return what keeps layers, one for all policies: it reads the model and all batches when it is made."""
        if self._kept is None and self._cache_dir is not None:
            self._kept = KeptSequence(self._cache_dir, self.calibration)
        return self._kept

    def ranges(self, policy: BitPolicy) -> Mapping[str, InputRange]:
        """Return the ranges of inputs by layer: those that were profiled, or found in a pass over the batches.

        Those of what sums and averages read are found in another, which looks at all of them at once.
        """
        if policy not in self._ranges:
            known = None if self.rounded is None else self.rounded.inputs
            layers = ranges_of_policy(self.calibration, policy, known)
            self._ranges[policy] = {**layers, **self._operand_ranges(policy, layers)}
        return self._ranges[policy]

    def _operand_ranges(self, policy: BitPolicy, layers: Mapping[str, InputRange]) -> Mapping[str, InputRange]:
        if not self._may_have_operands(policy):
            return {}
        wanted = by_operand(self.resolved(policy).operands or {}).items()
        known = {} if self.rounded is None else self.rounded.inputs
        if all(key in known for key in wanted):
            return {name: known[name, scheme] for name, scheme in wanted}
        return self._seen(policy).ranges(policy, layers)

    def resolved(self, policy: BitPolicy) -> BitPolicy:
        """Return a policy that says what sums and averages read, where it has left that open."""
        if policy.operands is not None or not self._may_have_operands(policy):
            return policy
        known = None if self.rounded is None else self.rounded.operands
        owners = known or self._seen(policy).owners  # none that are known may not have been looked for
        return BitPolicy(policy.schemes, policy.layers, schemes_by_owners(policy, owners))

    def _may_have_operands(self, policy: BitPolicy) -> bool:
        """Tell whether the model must be looked at for sums and averages: some inputs have ranges."""
        if policy.operands is not None:
            return bool(policy.operands)
        return any(scheme.needs_range for scheme in policy.inputs().values())

    def _seen(self, policy: BitPolicy) -> Operands:
        """Return what the model's sums read, and its products too where a policy has names of its own."""
        products = policy.operands is not None
        if products not in self._operands:
            self._operands[products] = Operands(self.calibration, products)
        return self._operands[products]

    @contextmanager
    def packed(self, policy: BitPolicy, order: RoundingOrder | None = None) -> Iterator[None]:
        """Pack the layers of a policy for the time of a ``with`` block, not yet repaired.

        Args:
            policy: The policy.
            order: As in `codes`.
        """
        codes, ranges = self.codes(policy, order), self.ranges(policy)
        with temporarily_packed(self.model, self.resolved(policy), codes, ranges):
            yield

    @contextmanager
    def packed_for_good(self, policy: BitPolicy) -> Iterator[None]:
        """Pack the layers of a policy and repair the model; an error in the ``with`` block unpacks it."""
        codes, ranges = self.codes(policy), self.ranges(policy)
        with packed_unless_it_fails(self.model, self.resolved(policy), codes, ranges):
            if self.check is not None:
                self.check(self.model)
            self.repair.apply()
            yield

    def pack(self, policy: BitPolicy) -> None:
        """Do the same once it is settled which BatchNorm statistics layers are rounded for; all of it or nothing.

        Layers that are rounded in sequence are rounded for the statistics that the model will have: the float model's
        where held-out data says that those measured again do harm.
        """
        self.settle_statistics(policy)
        with self.packed_for_good(policy):
            pass

    def settle_statistics(self, policy: BitPolicy) -> None:
        """Leave BatchNorm statistics if those measured again do harm, before layers are rounded for them."""
        if self.order(policy) == "sequential" and self.statistics_do_harm(policy):
            self.options = replace(self.options, batchnorm=False)
            self.repair.statistics = None
            self._codes = {key: codes for key, codes in self._codes.items() if key[1] == "independent"}

    def statistics_do_harm(self, policy: BitPolicy) -> bool:
        """Tell whether held-out data says that BatchNorm statistics are better left as they are; False if none can.

        That is asked of codes as candidates were rounded. Codes that were rounded in sequence for statistics measured
        again always gain by these, however much worse both are than the float model's with codes that suit them.
        """
        if not self.repair.may_leave_statistics:
            return False
        with self.packed(policy, "independent"):
            return "batchnorm" not in self.repair.apply()

    def on_all(self, calibration: Calibration, policy: BitPolicy, refused: Sequence[Step]) -> Quantizer:
        """Return what packs a policy fitted to all samples, once held-out ones have said how.

        Args:
            calibration: The float model, and all its batches.
            policy: The policy: its order of rounding stays as it was found, and so do ranges of inputs.
            refused: Repairs that do harm, and are left out.
        """
        options = RepairOptions(
            sequential=self.order(policy) == "sequential",
            batchnorm=self.options.batchnorm and "batchnorm" not in refused,
            biases=False if "biases" in refused else self.options.biases,
        )
        found = Quantizer(calibration, self._layers, options, self.rounded, cache_dir=self._cache_dir, judged=False)
        found.check, found._ranges = self.check, self._ranges
        return found
