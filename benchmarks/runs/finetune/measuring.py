"""One trained network, quantized and trained on inside an ordinary Trainer."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import lightning as L
from torch.optim import SGD, Optimizer

from lightning_mpq import (
    Budget,
    CandidateOptions,
    Categorical,
    CurvatureOptions,
    FinetuneOptions,
    InfeasibleBudgetError,
    MixedPrecisionQuantization,
    find_groups,
)
from lightning_mpq.modules import stored_bytes

from ...tools.accuracy import compare, outputs
from ...tools.results import Row
from ..arguments import networks_of

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"epochs": 0},
    "straight-through": {"learn_scales": False},
    "learned scales": {},
    "learned scales, distilled": {"distill": 1.0, "temperature": 2.0},
}
PEAK_LEARNING_RATE = 0.1


def measure(name: str, seed: int, budget: float, variant: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the row of one fine-tuning, or why there is none."""
    networks = networks_of(arguments)
    module, data = networks.module(name, seed), networks.data(seed)
    test, unseen = networks.test(), networks.held_out(seed, arguments.held_out)
    reference, labels = outputs(module.network, test)
    unseen_reference, _ = outputs(module.network, unseen)
    weights = sum(group.weight_count for group in find_groups(module.network))
    mixed = callback(seed, budget, variant, arguments, data.batch_size)
    trainer = L.Trainer(
        max_epochs=1,
        limit_train_batches=arguments.batches,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[mixed],
    )
    L.seed_everything(seed, workers=True, verbose=False)
    try:
        if variant == "none":
            mixed.quantize_trained(trainer, module, data)
        else:
            trainer.fit(module.train(), data)  # Lightning leaves the mode of each layer as it is
    except InfeasibleBudgetError as error:
        yield {"skipped": f"{name} with {budget:g} bits: {error}"}
        return
    stored = stored_bytes(module.network)
    held_out = compare(module.network, unseen, unseen_reference)
    yield {
        "network": name,
        "seed": seed,
        "budget": budget,
        "variant": variant,
        "bits": 8 * stored.packed / weights,
        "stored_bytes": stored.total,
        "float_accuracy": 100 * float((reference.argmax(1) == labels).double().mean()),
        **compare(module.network, test, reference),
        **{f"held_out_{key}": value for key, value in held_out.items()},
    }


def callback(
    seed: int, budget: float, variant: str, arguments: argparse.Namespace, batch_size: int
) -> MixedPrecisionQuantization:
    """Return the callback that quantizes at once and then fine-tunes as a variant says."""
    all_at_two = budget == 2.0
    settings = {"epochs": 1, "learning_rate": arguments.learning_rate / PEAK_LEARNING_RATE, **VARIANTS[variant]}
    return MixedPrecisionQuantization(
        Budget(average_bits=8.0 if all_at_two else budget),
        candidates=CandidateOptions(bits=(2,) if all_at_two else arguments.bits),
        curvature=CurvatureOptions(likelihood=Categorical(), seed=seed),
        calibration_batches=max(1, arguments.calibration // batch_size),
        finetune=FinetuneOptions(optimizers=optimizer, **settings),
        quantize_at=0 if variant != "none" else None,
        compare=False,
        report_path=None,
        cache_dir=None if arguments.quick else "outputs/taylor",
    )


def optimizer(module: L.LightningModule) -> Optimizer:
    """Return the recipe's own optimizer at its peak learning rate, which fine-tuning takes a fraction of."""
    return SGD(module.parameters(), lr=PEAK_LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
