"""Measure quadratic and additive policies of one draw of calibration images on held-out ones."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from torch import Tensor

from lightning_mpq import BitPolicy, Budget, CandidateOptions, RepairOptions, allocate
from lightning_mpq.pipeline.quantizer import Quantizer

from ...methods.profiled import profiled, quantizer
from ...tools.accuracy import Images, divergences, outputs
from ...tools.results import Row
from ..arguments import networks_of

CASES = (
    ("resnet20", "nearest", "frozen"),
    ("resnet20", "nearest", "reestimated"),
    ("resnet20", "second_order", "reestimated"),
    ("transformer", "nearest", "frozen"),
    ("transformer", "second_order", "frozen"),
)
"""Network, rounding, BatchNorm statistics."""


def measure(case: int, samples: int, seed: int, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield one row a budget: held-out divergence under each policy, and how the policies differ."""
    network, rounding, statistics = CASES[case]
    networks = networks_of(arguments)
    model = networks.network(network, 0)
    batches, unseen = networks.calibration(seed, samples, split=0), networks.held_out(0, arguments.held_out)
    candidates = CandidateOptions(bits=arguments.bits, rounding=rounding)  # type: ignore[arg-type]
    known = profiled(model, batches, candidates=candidates, statistics=statistics, seed=seed)
    options = RepairOptions(sequential=False, batchnorm=statistics == "reestimated", biases=False)
    packs = quantizer(model, batches, known, options)
    reference, _ = outputs(model, unseen)
    losses: dict[BitPolicy, Tensor] = {}
    for budget in arguments.budgets:
        quadratic, unshrunk = (allocate(taylor, Budget(budget)) for taylor in (known.taylor, known.unshrunk))
        policies = {
            "quadratic": quadratic.policy,
            "unshrunk": unshrunk.policy,
            "additive": quadratic.additive_policy or quadratic.policy,
        }
        for policy in policies.values():
            if policy not in losses:
                losses[policy] = held_out_losses(packs, policy, unseen, reference)
        found = {name: losses[policy] for name, policy in policies.items()}
        yield {
            "network": network,
            "rounding": rounding,
            "statistics": statistics,
            "samples": samples,
            "seed": seed,
            "budget": budget,
            "divergence": {name: float(loss.mean()) for name, loss in found.items()},
            "predicted": {name: known.taylor.predict(policy).value for name, policy in policies.items()},
            "difference_error": {
                name: float((found[name] - found["additive"]).std() / len(found[name]) ** 0.5)
                for name in ("quadratic", "unshrunk")
            },
            "bits": {name: list(policy.bits().values()) for name, policy in policies.items()},
        }


def held_out_losses(packs: Quantizer, policy: BitPolicy, unseen: Images, reference: Tensor) -> Tensor:
    """Return the divergence of each unseen image, [images], in nats, under a policy and repaired."""
    with packs.packed(policy):
        packs.repair.apply()
        found, _ = outputs(packs.model, unseen)
    return divergences(found, reference)
