"""Taylor models in slices of a few samples, of which a policy may be chosen from some and judged by others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any, Protocol

from lightning_mpq import Calibration, TaylorModel, find_groups, make_candidates, profile, round_candidates
from lightning_mpq.curvature.merge import merge
from lightning_mpq.network.likelihood import Categorical

from ...problems.digits_resnet import resnet20

_EPOCHS, _IMAGES = 12, 32
"""Of the ResNet's training, and images in a slice."""


class Slices(Protocol):
    """A Taylor model for any slices of the data, not shrunk."""

    def of(self, first: int, last: int) -> TaylorModel:
        """Return that of the slices from one up to another, the latter not included."""


@dataclass(frozen=True)
class Case:
    """A network, how it is rounded, and how many slices are for what.

    Attributes:
        network: Its name.
        rounding: ``"nearest"`` or ``"second_order"``.
        pool: Slices that a policy may be chosen from; ten times as many as it is chosen from.
        judging: Slices that judge it, after those.
        draws: How many tenths of the pool choose, one after the other.
    """

    network: str
    rounding: str
    pool: int
    judging: int
    draws: int = 3

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.network}, {self.rounding.replace('_', ' ')}"

    def few(self, slices: Slices, draw: int) -> TaylorModel:
        """Return the model of a tenth of the pool."""
        count = self.pool // 10
        return slices.of(draw * count, (draw + 1) * count)


RESNET = "resnet20 on digits"
CASES = (
    Case(RESNET, "nearest", 20, 18),
    Case(RESNET, "second_order", 20, 18),
    Case("minilm", "nearest", 10, 6, draws=2),
    Case("minilm", "second_order", 10, 6, draws=2),
    Case("efficientnet_lite0", "nearest", 10, 6, draws=2),
)


@dataclass(frozen=True, eq=False)
class Measured:
    """Slices that were measured one by one."""

    parts: Sequence[TaylorModel]

    def of(self, first: int, last: int) -> TaylorModel:
        """See `Slices`."""
        return merge(self.parts[first:last])


@dataclass(frozen=True, eq=False)
class Recorded:
    """The blocks of data that a recorded model keeps sums of; standard errors are those of all samples, scaled."""

    taylor: TaylorModel

    def of(self, first: int, last: int) -> TaylorModel:
        """See `Slices`."""
        assert self.taylor.sums is not None
        assert self.taylor.curvature_error is not None
        sums = {name: value[first:last] for name, value in self.taylor.sums.items() if name in _BLOCKS}
        weight = sums["blocks.weight"].sum()
        share = float(weight / self.taylor.sums["blocks.weight"].sum())
        return replace(
            self.taylor,
            curvature=sums["blocks.curvature"].double().sum(0) / weight,
            curvature_error=self.taylor.curvature_error / sqrt(share),
            samples=round(share * self.taylor.samples),
            sums=sums,
        )


_BLOCKS = ("blocks.weight", "blocks.curvature", "blocks.gradient")


def slices_of(case: Case, recorded: Path | None, epochs: int = _EPOCHS, images: int = _IMAGES) -> Slices:
    """Measure a network slice by slice, or read what was recorded of it.

    Args:
        case: The network.
        recorded: Folder of what ``benchmarks.recorded_instances.record --whole`` writes, ``NETWORK-ROUNDING.taylor``.
        epochs: That the ResNet is trained for.
        images: In a slice.

    Raises:
        FileNotFoundError: If it was not recorded.
    """
    if case.network != RESNET:
        path = None if recorded is None else recorded / f"{case.network}-{case.rounding}.taylor"
        if path is None or not path.exists():
            raise FileNotFoundError("not recorded (benchmarks.recorded_instances.record --whole, then --recorded)")
        return Recorded(TaylorModel.load(path))
    model, pool, unseen = resnet20(epochs)
    batches = [*pool.split(images)[: case.pool], *unseen.split(images)[: case.judging]]
    groups = find_groups(model)
    offered = make_candidates(groups, rounding=case.rounding)  # type: ignore[arg-type]
    chosen = Calibration(model, batches[: case.pool], likelihood=Categorical())
    settings: dict[str, Any] = {
        "groups": groups,
        "rounded": round_candidates(model, chosen, groups, offered),
        "statistics": "frozen" if case.rounding == "nearest" else "reestimated",
        "shrink": False,
    }
    return Measured([profile(model, [batch], likelihood=Categorical(), **settings) for batch in batches])
