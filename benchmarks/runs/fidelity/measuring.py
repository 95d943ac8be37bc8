"""Predict and measure the loss of random policies."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from random import Random

from lightning_mpq import CandidateOptions, TaylorModel, find_groups, make_candidates, round_candidates
from lightning_mpq.pipeline.temporary_packing import temporarily_packed
from lightning_mpq.repair.batchnorm import measure_batchnorm, reestimate_batchnorm

from ...tools.accuracy import divergences, outputs
from ...tools.results import Row
from ..arguments import networks_of
from .predictors import predictors_of, taylor_models


def measure(rounding: str, statistics: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield one row a policy: what each predictor says, and what was measured on held-out images."""
    networks, seed = networks_of(arguments), arguments.seed
    model = networks.network("resnet20", seed)
    batches = networks.calibration(seed, arguments.calibration)
    unseen = networks.held_out(seed, arguments.held_out)
    groups = find_groups(model)
    schemes = CandidateOptions(bits=arguments.bits, rounding=rounding).offered_schemes()  # type: ignore[arg-type]
    rounded = round_candidates(model, batches, groups, make_candidates(groups, schemes=schemes))
    taylors = taylor_models(model, batches, groups, rounded, statistics)
    predictors = predictors_of(model, batches, taylors, rounded, seed)
    reference, labels = outputs(model, unseen)
    float_loss = float(-reference.gather(1, labels[:, None]).mean())
    before = measure_batchnorm(model, batches)
    fisher = taylors["fisher"]
    for kind, chosen in random_policies(fisher, arguments.policies, seed):
        policy = fisher.policy(chosen)
        with temporarily_packed(model, policy, rounded.of_policy(policy)):
            if statistics == "reestimated":
                reestimate_batchnorm(model, batches, before=before)
            found, _ = outputs(model, unseen)
        yield {
            "rounding": rounding,
            "statistics": statistics,
            "policies": kind,
            "bits": [fisher.candidates[index].scheme.bits for index in chosen],
            "divergence": float(divergences(found, reference).mean()),
            "task_loss": float(-found.gather(1, labels[:, None]).mean()) - float_loss,
            "predicted": {name: predict(chosen) for name, predict in predictors.items()},
        }


def random_policies(taylor: TaylorModel, count: int, seed: int) -> Iterator[tuple[str, list[int]]]:
    """Yield ``count`` policies of kind "even" and a quarter as many of kind "ranged", all distinct.

    "even": each group's width is drawn evenly from those offered; averages lie near 5 bits and damage differs little.
    "ranged": drawn from a range that is itself drawn for each policy, so that damage differs by orders of magnitude.
    """
    random = Random(seed)
    offered: dict[str, dict[int, int]] = {}
    for index, candidate in enumerate(taylor.candidates):
        offered.setdefault(candidate.group, {})[candidate.scheme.bits] = index
    bits = sorted({candidate.scheme.bits for candidate in taylor.candidates})
    policies: dict[tuple[int, ...], str] = {}
    for kind, total in (("even", count), ("ranged", count + count // 4)):
        while len(policies) < total:
            low, high = (bits[0], bits[-1]) if kind == "even" else sorted(random.choices(bits, k=2))
            policies.setdefault(tuple(widths[random.randint(low, high)] for widths in offered.values()), kind)
    for policy, kind in policies.items():
        yield kind, list(policy)
