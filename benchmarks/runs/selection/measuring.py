"""The policy as solved and the policy that is kept, both measured on held-out images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from torch import Tensor

from lightning_mpq import BitPolicy, Budget, CandidateOptions, Categorical, CurvatureOptions
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.planning import Decision
from lightning_mpq.pipeline.settings import JobSettings

from ...tools.accuracy import Images, compare, outputs
from ...tools.results import Row
from ..arguments import networks_of


def measure(seed: int, rounding: str, budget: float, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the row of one network, rounding and budget."""
    networks = networks_of(arguments)
    model, batches = networks.network("resnet20", seed), networks.calibration(seed, arguments.calibration)
    unseen = networks.held_out(seed, arguments.held_out)
    settings = JobSettings(
        Budget(average_bits=budget),
        CandidateOptions(bits=arguments.bits, rounding=rounding),  # type: ignore[arg-type]
        CurvatureOptions(likelihood=Categorical(), seed=seed),
    )
    pipeline = Pipeline(settings)
    decision = pipeline.decide(model, batches)
    solved = next(trial for trial in decision.trials if trial.policy == "solved")
    kept = next(trial for trial in decision.trials if trial.kept)
    reference, _ = outputs(model, unseen)
    yield {
        "seed": seed,
        "rounding": rounding,
        "budget": budget,
        "kept": kept.policy,
        "kept_round": kept.round,
        "rounds": max(trial.round for trial in decision.trials),
        "calibration_solved": solved.measured_loss,
        "calibration_kept": kept.measured_loss,
        "predicted_solved": solved.predicted_loss,
        "held_out_solved": held_out_loss(decision, policy_of(decision, solved.bits), unseen, reference),
        "held_out_kept": held_out_loss(decision, decision.allocation.policy, unseen, reference),
        "seconds": dict(pipeline.timer.seconds),
    }


def policy_of(decision: Decision, bits: Mapping[str, int]) -> BitPolicy:
    """Return the policy of a trial, which says the width of each group."""
    by_bits = {(c.group, c.scheme.bits): c.scheme for c in decision.taylor.candidates}
    schemes = {group: by_bits[group, width] for group, width in bits.items()}
    return BitPolicy(schemes, dict(decision.allocation.policy.layers))


def held_out_loss(decision: Decision, policy: BitPolicy, unseen: Images, reference: Tensor) -> float:
    """Return the held-out divergence under a policy, quantized and repaired; the model is then a float one again."""
    quantizer = decision.quantizer
    with quantizer.packed(policy):
        quantizer.repair.apply()
        return compare(quantizer.model, unseen, reference)["divergence"]
