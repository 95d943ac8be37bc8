"""What fine-tuning behind quantization gives back: none, straight-through, learned scales, distillation.

Trained networks are quantized with 1,024 unaugmented training images and trained on for an epoch inside an ordinary
Trainer; the 10,000 test images only report. "2 bits" means every layer at 2 bits, scales on top; all other
budgets are average bits with scales counted.

    python -m benchmarks.finetune --root DIR --networks resnet20 --seeds 0
    python -m benchmarks.finetune --root DIR

Whether it pays to decide bits again on the way: two halves of as many steps, with and without that in between.

    python -m benchmarks.finetune --root DIR --networks resnet20 --budgets 2.25 2.5 3
        --variants in-halves re-allocated --output benchmarks/results/finetune-reallocation.json

Whether it pays to hold weights that go to and fro between two levels:

    python -m benchmarks.finetune --root DIR --networks mobilenet --budgets 2
        --variants "learned scales, distilled" "oscillations held"
        --output benchmarks/results/finetune-oscillations.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from math import sqrt
from statistics import median, stdev
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch.optim import SGD, Optimizer

from lightning_mpq.allocation import Budget
from lightning_mpq.demo.classifier import Classifier
from lightning_mpq.errors import InfeasibleBudgetError
from lightning_mpq.finetune import fake_quantize
from lightning_mpq.groups.candidates import default_scheme
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import stored_bytes
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import CandidateOptions, CurvatureOptions, FinetuneOptions
from lightning_mpq.policy import BitPolicy
from lightning_mpq.trainer.callback import MixedPrecisionQuantization

from .accuracy import compare, mean, outputs
from .common import Demand, write_results
from .networks import CALIBRATION, calibration, data_module, held_out, test_split, trained
from .parts import LEFT_OUT, parser_of, part, settings_of

NETWORKS = ("resnet20", "mobilenet")
BUDGETS = (2.0, 2.25, 2.5, 3.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"epochs": 0},
    "straight-through": {"learn_scales": False},
    "learned scales": {},
    "learned scales, distilled": {"distill": 1.0, "temperature": 2.0},
}
ON_REQUEST: dict[str, dict[str, Any]] = {
    "in-halves": {**VARIANTS["learned scales, distilled"], "epochs": 2},
    "re-allocated": {**VARIANTS["learned scales, distilled"], "epochs": 2, "reallocate_every": 1},
    "oscillations held": {**VARIANTS["learned scales, distilled"], "freeze_oscillations": 0.02},
}
"""Measured on request; each of two epochs takes half of the batches."""
PEAK_LEARNING_RATE = 0.1


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("finetune", __doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, *ON_REQUEST], default=list(VARIANTS))
    parser.add_argument("--batches", type=int, default=430, help="training batches of 128 images; 430 are an epoch")
    parser.add_argument("--learning-rate", type=float, default=0.003, help="at the start; decays to 0 by a cosine")
    arguments = parser.parse_args()
    measured = [
        row
        for name, seed, budget, variant in product(
            arguments.networks, arguments.seeds, arguments.budgets, arguments.variants
        )
        for row in part(
            "finetune",
            f"{name}-seed{seed}-{budget:g}bits-{variant.replace(', ', '-').replace(' ', '_')}-{arguments.batches}"
            f"-lr{arguments.learning_rate:g}",
            partial(finetuned, name, seed, budget, variant, arguments),
            only_known=arguments.known,
        )
    ]
    rows = [row for row in measured if "skipped" not in row]
    ratios = step_ratios(arguments)
    print_table(rows)
    print("step time over a float step:", ratios)
    path = write_results(
        "finetune",
        settings={
            **settings_of(arguments),
            "calibration_images": CALIBRATION,
            "step_time_over_float_step": ratios,
            "skipped": list(dict.fromkeys(row["skipped"] for row in measured if "skipped" in row)) + LEFT_OUT,
        },
        results=rows,
        demands=demands(rows, ratios),
        output=arguments.output,
    )
    print(f"written to {path}")


def finetuned(
    name: str, seed: int, budget: float, variant: str, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield the row of one fine-tuning."""
    module = trained(name, seed, arguments.root, arguments.epochs)
    data = data_module(arguments.root, seed)
    test = test_split(data)
    reference, _ = outputs(module.network, test)
    unseen = held_out(data, seed)
    unseen_reference, _ = outputs(module.network, unseen)
    weights = sum(group.weight_count for group in find_groups(module.network))
    all_at_two = budget == 2.0
    settings = {"epochs": 1, "learning_rate": arguments.learning_rate / PEAK_LEARNING_RATE}
    settings |= {**VARIANTS, **ON_REQUEST}[variant]
    mixed = MixedPrecisionQuantization(
        Budget(average_bits=8.0 if all_at_two else budget),
        candidates=CandidateOptions(bits=(2,)) if all_at_two else None,
        curvature=CurvatureOptions(likelihood=Categorical(), seed=seed),
        calibration_batches=CALIBRATION // data.batch_size,
        finetune=FinetuneOptions(optimizers=optimizer, **settings),
        quantize_at=0 if variant != "none" else None,
        verdict=False,
        report_path=None,
        cache_dir="outputs/taylor",
    )
    trainer = L.Trainer(
        max_epochs=1,
        limit_train_batches=arguments.batches // max(settings["epochs"], 1),
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
    yield {
        "network": name,
        "seed": seed,
        "budget": budget,
        "variant": variant,
        "bits": 8 * stored.packed / weights,
        "stored_bytes": stored.total,
        "float_accuracy": 100 * float((reference.argmax(1) == torch.cat([y for _, y in test])).double().mean()),
        "reallocations": [asdict(row) for row in mixed.finetuning.reallocations],
        **compare(module.network, test, reference),
        **{f"held_out_{key}": value for key, value in compare(module.network, unseen, unseen_reference).items()},
    }


def optimizer(module: L.LightningModule) -> Optimizer:
    """Return the recipe's own optimizer at its peak learning rate, which fine-tuning takes a fraction of."""
    return SGD(module.parameters(), lr=PEAK_LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)


def step_ratios(arguments: argparse.Namespace, repeats: int = 15) -> dict[str, float]:
    """Return the time of a step with learned scales over that of a float step: medians of interleaved steps."""
    ratios = {}
    for name in arguments.networks:
        data = data_module(arguments.root, 0)
        batch = calibration(data, 0, data.batch_size)[0]
        modules = {key: trained(name, 0, arguments.root, arguments.epochs).train() for key in ("float", "quantized")}
        quantizing = fake_quantize(modules["quantized"].network, _policy(modules["quantized"]))
        steps = {key: SGD(module.parameters(), lr=1e-4, momentum=0.9) for key, module in modules.items()}
        steps["quantized"].add_param_group({"params": list(quantizing.parameters())})
        seconds: dict[str, list[float]] = {key: [] for key in modules}
        for _ in range(repeats):
            for key, module in modules.items():
                start = time.perf_counter()
                _step(module, batch, steps[key])
                seconds[key].append(time.perf_counter() - start)
        ratios[name] = median(seconds["quantized"]) / median(seconds["float"])
    return ratios


def _policy(module: Classifier) -> BitPolicy:
    groups = find_groups(module.network)
    return BitPolicy({g.name: default_scheme(2) for g in groups}, {g.name: g.layers for g in groups})


def _step(module: Classifier, batch: Any, step: Optimizer) -> None:
    images, labels = batch
    step.zero_grad()
    torch.nn.functional.cross_entropy(module.network(images), labels).backward()
    step.step()


def demands(rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, float]) -> list[Demand]:
    """Return the demanded figures of ResNet-20 with learned scales and distillation, means over seeds."""
    found = []

    def mine(budget: float) -> list[Mapping[str, Any]]:
        wanted = {"network": "resnet20", "budget": budget, "variant": "learned scales, distilled"}
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]

    if two := mine(2.0):
        lost = mean(row["points_lost"] for row in two)
        name = f"ResNet-20: points below float with every layer at 2 bits, mean of {len(two)} seeds"
        found.append(Demand(name, "<= 0.3", lost, lost <= 0.3))
    if half := mine(2.5):
        least = min(row["p_value"] if row["points_lost"] > 0 else 1.0 for row in half)
        bound = 0.05 / len(half)
        name = "ResNet-20: least p-value of a loss at 2.5 bits (McNemar)"
        found.append(Demand(name, f">= {bound:.3f} (0.05 over the seeds)", least, least >= bound))
        losses = [row["points_lost"] for row in half]
        if len(losses) > 1:
            error = stdev(losses) / sqrt(len(losses))
            name = f"ResNet-20: points below float at 2.5 bits, mean of {len(half)} seeds"
            found.append(
                Demand(name, f"<= {2 * error:.2f} (two standard errors)", mean(losses), mean(losses) <= 2 * error)
            )
    if "resnet20" in ratios:
        ratio = ratios["resnet20"]
        found.append(Demand("ResNet-20: step with learned scales over float step", "<= 1.6", ratio, ratio <= 1.6))
    return found


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print means over seeds."""
    table = Table(title="Test images, mean over seeds")
    for title in ("network", "budget", "fine-tuning", "seeds", "bits/weight", "accuracy", "points lost", "divergence"):
        table.add_column(title)
    cells: dict[tuple[str, float, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["network"], row["budget"], row["variant"]), []).append(row)
    for (name, budget, variant), found in cells.items():
        bits, accuracy, lost, divergence = (
            mean(row[key] for row in found) for key in ("bits", "accuracy", "points_lost", "divergence")
        )
        numbers = (f"{bits:.3f}", f"{accuracy:.2f} %", f"{lost:+.2f}", f"{divergence:.5f}")
        table.add_row(name, f"{budget:g}", variant, str(len(found)), *numbers)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
