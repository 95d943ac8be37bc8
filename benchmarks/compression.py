"""Accuracy against bits: rounding, allocation and repair, each without and with, and no fine-tuning anywhere.

Two networks are trained on Fashion-MNIST, once for each seed, and quantized with 1,024 unaugmented training images;
the 10,000 test images only report.

    python -m benchmarks.compression --root DIR
    python -m benchmarks.compression --root DIR --networks resnet20 --seeds 0 --epochs 6
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from torch import Tensor, nn

from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.candidates import make_candidates
from lightning_mpq.correction import batchnorm_layers, measure_batchnorm, reestimate_batchnorm
from lightning_mpq.curvature import Categorical, TaylorModel, profile
from lightning_mpq.demo.classifier import Classifier
from lightning_mpq.demo.fashion_mnist import FashionMNIST
from lightning_mpq.demo.resnet import ResNet
from lightning_mpq.errors import InfeasibleBudgetError
from lightning_mpq.groups import find_groups
from lightning_mpq.modules import pack_model, restore_layers, stored_bytes
from lightning_mpq.policy import BitPolicy
from lightning_mpq.quantizers import QuantizedRows
from lightning_mpq.rounding import round_candidates, second_order_schemes
from lightning_mpq.sequential_rounding import round_sequentially
from lightning_mpq.verdict import uniform_policy

from .common import Demand, write_results
from .mobilenet import MobileNet

NETWORKS = {"resnet20": ResNet, "mobilenet": MobileNet}
BUDGETS = (2.0, 2.25, 2.5, 3.0, 4.0)
CALIBRATION = 1024
BATCH = 128
DEMANDED_LOSS = {2.25: 0.5, 2.5: 0.3, 3.0: 0.15}
JOB_SECONDS = 180


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the four IDX files of Fashion-MNIST")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="average bits, scales counted")
    parser.add_argument("--draws", type=int, default=4, help="output gradients drawn per image for the profile")
    parser.add_argument("--cache", type=Path, default=Path("outputs/compression"), help="folder of trained weights")
    parser.add_argument("--output", type=Path, help="file to write; default benchmarks/results/compression.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    for name in arguments.networks:
        for seed in arguments.seeds:
            data = FashionMNIST(arguments.root, seed=seed)
            model = trained(name, seed, arguments.epochs, data, arguments.cache)
            for row in compress(model, data, seed, arguments.budgets, arguments.draws, skipped):
                rows.append({"network": name, "seed": seed, **row})
                print(rows[-1], flush=True)
    _print(rows)
    path = write_results(
        "compression",
        settings={
            "seeds": arguments.seeds,
            "epochs": arguments.epochs,
            "calibration_images": CALIBRATION,
            "draws": arguments.draws,
            "budgets": list(arguments.budgets),
            "skipped": sorted(set(skipped)),
        },
        results=rows,
        demands=_demands(rows),
        output=arguments.output,
    )
    print(f"written to {path}")


def trained(name: str, seed: int, epochs: int, data: FashionMNIST, cache: Path) -> nn.Module:
    """Train a network, or read its weights from the cache."""
    L.seed_everything(seed, workers=True, verbose=False)
    module = Classifier(NETWORKS[name](), label_smoothing=0.1)
    path = cache / f"{name}-seed{seed}-epochs{epochs}.pt"
    if path.exists():
        module.load_state_dict(torch.load(path, weights_only=True))
    else:
        trainer = L.Trainer(
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), path)
    return module.network.eval().cpu()


def compress(
    model: nn.Module, data: FashionMNIST, seed: int, budgets: Sequence[float], draws: int, skipped: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield one row for each way of rounding, plan, budget and repair, the float model first.

    Args:
        model: A trained network.
        data: Where calibration and test images come from.
        seed: Seed of the choice of calibration images and of the drawn gradients.
        budgets: Average bits.
        draws: Output gradients drawn per image.
        skipped: Gets a line for each budget that cannot be met.
    """
    batches, test = calibration(data, seed), test_split(data)
    groups = find_groups(model)
    with torch.no_grad():
        float_right = _right(model, test)
    yield {"rounding": "float", "bits": 32.0, **_score(float_right, float_right)}
    for rounding in ("nearest", "second_order"):
        start = time.perf_counter()
        schemes = second_order_schemes() if rounding == "second_order" else None
        rounded = round_candidates(model, batches, groups, make_candidates(groups, schemes=schemes))
        round_seconds = time.perf_counter() - start
        start = time.perf_counter()
        taylor = profile(
            model,
            batches,
            groups=groups,
            rounded=rounded,
            likelihood=Categorical(),
            draws=draws,
            seed=seed,
        )
        profile_seconds = time.perf_counter() - start
        for budget in budgets:
            start = time.perf_counter()
            try:
                plans = _plans(taylor, budget)
            except InfeasibleBudgetError as error:
                skipped.append(f"{rounding} at {budget} bits: {error}")
                continue
            allocate_seconds = time.perf_counter() - start
            for plan, policy in plans.items():
                start = time.perf_counter()
                codes = {rounding: rounded.of_policy(policy)}
                if rounding == "second_order" and plan == "full":
                    codes["sequential"] = round_sequentially(model, batches, policy)
                code_seconds = time.perf_counter() - start
                for (way, rows), repair in product(codes.items(), (False, True)):
                    start = time.perf_counter()
                    with quantized(model, policy, rows, batches if repair else None):
                        seconds = round_seconds + profile_seconds + allocate_seconds + time.perf_counter() - start
                        yield {
                            "rounding": way,
                            "plan": plan,
                            "repair": repair,
                            "budget": budget,
                            "bits": 8 * stored_bytes(model).packed / sum(group.weight_count for group in groups),
                            "stored_bytes": stored_bytes(model).total,
                            "job_seconds": seconds + (code_seconds if way == "sequential" else 0.0),
                            **_score(_right(model, test), float_right),
                        }


def _plans(taylor: TaylorModel, budget: float) -> dict[str, BitPolicy]:
    """Return the plans to compare under a budget; uniform widths stand for the whole number of bits below."""
    allocation = allocate(taylor, Budget(average_bits=budget))
    plans = {"full": allocation.policy}
    if allocation.additive_policy is not None:
        plans["additive"] = allocation.additive_policy
    if budget == round(budget) or budget == min(b for b in BUDGETS if b > 2):
        plans["uniform"] = uniform_policy(taylor, float(int(budget)))
    return plans


@contextmanager
def quantized(
    model: nn.Module, policy: BitPolicy, rounded: Mapping[str, QuantizedRows], batches: Sequence[Any] | None
) -> Iterator[None]:
    """Pack a model for the time of a block, and repair its BatchNorm statistics if there are batches."""
    layers = batchnorm_layers(model)
    state = {name: {key: value.clone() for key, value in layer.named_buffers()} for name, layer in layers.items()}
    before = measure_batchnorm(model, batches) if batches else None
    floats = pack_model(model, policy, rounded)
    try:
        if batches:
            reestimate_batchnorm(model, batches, before=before)
        yield
    finally:
        restore_layers(model, floats)
        for name, layer in layers.items():
            for key, value in layer.named_buffers():
                value.copy_(state[name][key])


def calibration(data: FashionMNIST, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of training images as they are, without augmentation."""
    data.setup("fit")
    images: Any = data.calibration_dataloader().dataset
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
    return [images.__getitems__(part.tolist()) for part in order.split(BATCH)]


def test_split(data: FashionMNIST) -> list[tuple[Tensor, Tensor]]:
    """Return the test images in batches."""
    data.setup("test")
    return list(data.test_dataloader())


@torch.no_grad()
def _right(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return which images are classified right."""
    return torch.cat([model(images).argmax(1) == labels for images, labels in batches])


def _score(right: Tensor, float_right: Tensor) -> dict[str, float]:
    """Return accuracy, its loss against the float model in points, and the p-value of McNemar's exact test."""
    worse, better = int((float_right & ~right).sum()), int((~float_right & right).sum())
    p_value = binomtest(worse, worse + better).pvalue if worse + better else 1.0
    accuracy = 100 * float(right.double().mean())
    return {
        "test_accuracy": accuracy,
        "points_lost": 100 * float(float_right.double().mean()) - accuracy,
        "p_value": float(p_value),
    }


def _demands(rows: Sequence[Mapping[str, Any]]) -> list[Demand]:
    def chosen(budget: float) -> list[Mapping[str, Any]]:
        wanted = {"network": "resnet20", "rounding": "sequential", "plan": "full", "repair": True, "budget": budget}
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]

    demands = []
    for budget, limit in DEMANDED_LOSS.items():
        if found := chosen(budget):
            lost = sum(row["points_lost"] for row in found) / len(found)
            name = f"ResNet-20: points below float at {budget} bits, mean of {len(found)} seeds"
            demands.append(Demand(name, f"<= {limit}", lost, lost <= limit))
    if found := chosen(4.0):
        least = min(row["p_value"] if row["points_lost"] > 0 else 1.0 for row in found)
        name = "ResNet-20: least p-value of a loss at 4 bits (McNemar)"
        demands.append(
            Demand(name, f">= {0.05 / len(found):.3f} (0.05 over the seeds)", least, least >= 0.05 / len(found))
        )
    if jobs := [row["job_seconds"] for budget in BUDGETS for row in chosen(budget)]:
        name = "ResNet-20: seconds from trained weights to the packed, repaired model"
        demands.append(Demand(name, f"<= {JOB_SECONDS}", max(jobs), max(jobs) <= JOB_SECONDS))
    return demands


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="Test accuracy, mean over seeds")
    for title in ("network", "rounding", "plan", "repair", "budget", "bits/weight", "accuracy", "points lost"):
        table.add_column(title, justify="right" if title in ("bits/weight", "accuracy", "points lost") else "left")
    cells: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = tuple(str(row.get(name, "")) for name in ("network", "rounding", "plan", "repair", "budget"))
        cells.setdefault(key, []).append(row)
    for key, found in cells.items():
        means = [sum(row[name] for row in found) / len(found) for name in ("bits", "test_accuracy", "points_lost")]
        table.add_row(*key, f"{means[0]:.3f}", f"{means[1]:.2f} %", f"{means[2]:+.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
