"""A network with and without each repair, and with and without blocks of columns as candidates."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from torch import nn

from lightning_mpq import Budget, CandidateOptions, RepairOptions, allocate
from lightning_mpq.pipeline.comparison import uniform_policy
from lightning_mpq.pipeline.profiling import Profiled
from lightning_mpq.pipeline.quantizer import RoundingOrder

from ...methods.profiled import profiled, quantizer
from ...problems.folded import folded
from ...tools.accuracy import Images, compare, outputs
from ...tools.results import Row
from ..arguments import networks_of

BUDGETS = {"mobilenet": (2.6, 3.0)}  # it cannot be stored at 2.25 bits: nine weights a scale
GRANULARITY_BUDGETS = (2.25, 2.5, 3.0)
GRANULARITIES: dict[str, tuple[str | int, ...]] = {
    "channel": ("channel",),
    "channel and blocks": ("channel", 128, 64, 32),
}
ORDERS: tuple[RoundingOrder, ...] = ("independent", "sequential")


class Setting(NamedTuple):
    """A network and its images."""

    model: nn.Module
    batches: Images
    unseen: Images
    test: Images


def repairs(name: str, seed: int, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield one row for each budget, way of rounding and state of repair; test images only for the lower budget."""
    model, batches, unseen, test = setting_of(name, seed, arguments)
    budgets = arguments.budgets or BUDGETS.get(name, (2.25, 3.0))
    known = _profiled(model, batches, seed, ("channel",), arguments.bits)
    policies = {f"{budget:g} bits": allocate(known.taylor, Budget(average_bits=budget)).policy for budget in budgets}
    policies = {"every layer at 2": uniform_policy(known.taylor, 2), **policies}
    references = {"held_out": outputs(model, unseen)[0], "test": outputs(model, test)[0]}
    packs = quantizer(model, batches, known, RepairOptions())
    for kind, policy in policies.items():
        for order in ORDERS:
            with packs.packed(policy, order):
                done: tuple[str, ...] = ()
                for step in chain([None], packs.repair.steps()):
                    done += () if step is None else (step,)
                    row: Row = {"policy": kind, "rounding": order, "repaired": list(done)}
                    row["held_out"] = compare(model, unseen, references["held_out"])
                    if kind == f"{budgets[0]:g} bits":
                        row["test"] = compare(model, test, references["test"])
                    yield row


def granularities(name: str, seed: int, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield one row for each set of granularities and budget; the model is packed and repaired as by default."""
    model, batches, unseen, _ = setting_of(name, seed, arguments)
    reference, _ = outputs(model, unseen)
    for offered, shared in GRANULARITIES.items():
        known = _profiled(model, batches, seed, shared, arguments.bits[:4])
        packs = quantizer(model, batches, known, RepairOptions())
        for budget in arguments.budgets or GRANULARITY_BUDGETS:
            allocation = allocate(known.taylor, Budget(average_bits=budget))
            policy = allocation.policy
            with packs.packed(policy):
                packs.repair.apply()
                yield {
                    "offered": offered,
                    "budget": budget,
                    "bits": allocation.costs["average_bits"],
                    "groups": len(known.groups),
                    "groups_in_blocks": sum(isinstance(s.weight.granularity, int) for s in policy.values()),
                    "predicted": allocation.predicted_loss,
                    "held_out": compare(model, unseen, reference),
                }


def setting_of(name: str, seed: int, arguments: argparse.Namespace) -> Setting:
    """Return a network, possibly ``folded``, with calibration, held-out and test images."""
    networks = networks_of(arguments)
    kind, _, form = name.partition(" ")
    model = networks.network(kind, seed)
    return Setting(
        folded(model) if form == "folded" else model,
        networks.calibration(seed, arguments.calibration),
        networks.held_out(seed, arguments.held_out),
        networks.test(),
    )


def _profiled(
    model: nn.Module, batches: Images, seed: int, granularity: Sequence[str | int], bits: Sequence[int]
) -> Profiled:
    return profiled(model, batches, candidates=CandidateOptions(bits=bits, granularities=granularity), seed=seed)
