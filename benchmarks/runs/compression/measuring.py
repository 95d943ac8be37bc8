"""One trained network under every way of rounding, policy, budget and repair."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Literal

from lightning_mpq import (
    BitPolicy,
    Budget,
    CandidateOptions,
    InfeasibleBudgetError,
    RepairOptions,
    TaylorModel,
    allocate,
)
from lightning_mpq.modules import stored_bytes
from lightning_mpq.pipeline.comparison import uniform_policy
from lightning_mpq.pipeline.quantizer import RoundingOrder

from ...methods.profiled import profiled, quantizer
from ...tools.accuracy import compare, outputs
from ...tools.results import Row
from ..arguments import networks_of

ROUNDINGS: tuple[Literal["nearest", "second_order"], ...] = ("nearest", "second_order")


def measure(name: str, seed: int, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield one row for each way of rounding, policy, budget and repair, the float model first.

    Policies of a model that will be repaired come from a Taylor model of the repaired loss, others from one of the
    loss with frozen statistics. "sequential" is the quadratic policy of second-order rounding, rounded once more with
    each layer's inputs as the quantized layers before it make them.
    """
    networks = networks_of(arguments)
    model, test = networks.network(name, seed), networks.test()
    batches = networks.calibration(seed, arguments.calibration)
    reference, _ = outputs(model, test)
    total = stored_bytes(model).total
    yield {"rounding": "float", "bits": 32.0, "stored_bytes": total, **compare(model, test, reference)}
    for rounding in ROUNDINGS:
        for repair in (False, True):
            candidates = CandidateOptions(bits=arguments.bits, rounding=rounding)
            statistics = "reestimated" if repair else "frozen"
            known = profiled(model, batches, candidates=candidates, statistics=statistics, seed=seed)
            packs = quantizer(model, batches, known, RepairOptions(batchnorm=repair, biases=False))
            weights = sum(group.weight_count for group in known.groups)
            for budget in arguments.budgets:
                policies = dict(compared(known.taylor, budget))
                if "quadratic" not in policies:
                    least = uniform_bits(known.taylor, min(arguments.bits)) / weights
                    yield {"skipped": f"{name}: no policy stores {budget:g} bits a weight; at the least {least:.3f}"}
                for kind, policy in policies.items():
                    orders: dict[str, RoundingOrder] = {rounding: "independent"}
                    seconds = 0.0
                    if rounding == "second_order" and kind == "quadratic":
                        orders["sequential"] = "sequential"
                        start = time.perf_counter()
                        packs.codes(policy, "sequential")  # which keeps them
                        seconds = time.perf_counter() - start
                    for way, order in orders.items():
                        with packs.packed(policy, order):
                            packs.repair.apply()
                            stored = stored_bytes(model)
                            yield {
                                "rounding": way,
                                "policy": kind,
                                "repair": repair,
                                "budget": budget,
                                "bits": 8 * stored.packed / weights,
                                "stored_bytes": stored.total,
                                "predicted": known.taylor.predict(policy).value,
                                **({"sequential_seconds": seconds} if way == "sequential" else {}),
                                **compare(model, test, reference),
                            }


def compared(taylor: TaylorModel, budget: float) -> Iterator[tuple[str, BitPolicy]]:
    """Yield the policies to compare under a budget; uniform widths stand beside the whole number of bits."""
    if budget == int(budget):
        yield "uniform", uniform_policy(taylor, budget)
    try:
        allocation = allocate(taylor, Budget(average_bits=budget))
    except InfeasibleBudgetError:
        return
    yield "quadratic", allocation.policy
    if allocation.additive_policy is not None:
        yield "additive", allocation.additive_policy


def uniform_bits(taylor: TaylorModel, bits: int) -> float:
    """Return the bits of all quantized weights at one width, scales included."""
    return sum(taylor.candidates[index].stored_bits for index in taylor.indices(uniform_policy(taylor, bits)))
