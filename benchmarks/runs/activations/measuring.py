"""One network, its joint Taylor model, and what policies over weights and inputs do to images that nobody has seen."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.curvature import TaylorModel
from lightning_mpq.demo.classifier import Classifier
from lightning_mpq.demo.digits import Digits
from lightning_mpq.demo.resnet import ResNet
from lightning_mpq.modules.workload import measure_workload

from ...tools.accuracy import Images, compare, outputs

Row = dict[str, Any]


def trained(depth: int, epochs: int, seed: int) -> tuple[nn.Module, Digits]:
    """Return a ResNet trained on the digits, in eval mode, and its data."""
    L.seed_everything(seed, verbose=False)
    data, module = Digits(seed=seed), Classifier(ResNet(depth))
    L.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", devices=1,
    ).fit(module, data)  # fmt: skip
    return module.network.eval(), data


def images_of(data: Digits, count: int) -> tuple[Images, Images]:
    """Return batches of training images to calibrate on, and all images that the training has not seen."""
    data.setup("fit")
    data.setup("test")
    found: Images = []
    for batch in data.calibration_dataloader():
        if sum(len(labels) for _, labels in found) < count:
            found.append(batch)
    return found, [*data.test_dataloader(), *data.val_dataloader()]


def measure(network: nn.Module, calibration: Images, test: Images, bits: list[int], inputs: list[int]) -> Iterator[Row]:
    """Yield a row for each policy: accuracy and divergence on test images, beside what was predicted."""
    images = [batch for batch, _ in calibration]
    groups = mpq.find_groups(network)
    candidates = mpq.make_candidates(groups, bits, inputs=inputs)
    rounded = mpq.round_candidates(network, images, groups, candidates)
    taylor = mpq.profile(network, images, groups=groups, rounded=rounded, likelihood=mpq.Categorical())
    macs = measure_workload(network, images, groups).macs
    reference, _ = outputs(network, test)
    yield {
        "policy": "float", "weights": 32, "inputs": 32, "bit_operations": None, "predicted": 0.0,
        **compare(network, test, reference), "clipped": 0.0,
    }  # fmt: skip
    uniform = {(w, a): _uniform(taylor, w, a) for w, a in ((8, 8), (4, 8), (4, 4)) if w in bits and a in inputs}
    found = {f"W{w}A{a}": policy for (w, a), policy in uniform.items()}
    for name in [name for name in found if name != "W8A8"]:
        limit = _operations(found[name], macs)
        for objective in ("quadratic", "additive"):
            budget = mpq.Budget(bit_operations=limit, macs=macs)
            found[f"{name} BOPs, {objective}"] = mpq.allocate(taylor, budget, objective=objective).policy
    for name, policy in found.items():
        packed = mpq.quantize(copy.deepcopy(network), policy, images, rounded=rounded)
        schemes = policy.by_layer().values()
        yield {
            "policy": name,
            "weights": sum(scheme.bits for scheme in schemes) / len(schemes),
            "inputs": sum(scheme.input_bits or 32 for scheme in schemes) / len(schemes),
            "bit_operations": _operations(policy, macs),
            "predicted": taylor.predict(policy).value,
            **compare(packed, test, reference),
            "clipped": max(mpq.clipped_inputs(packed, [batch for batch, _ in test]).values()),
        }


def _uniform(taylor: TaylorModel, weights: int, inputs: int) -> mpq.BitPolicy:
    chosen: dict[str, int] = {}
    for index, candidate in enumerate(taylor.candidates):
        if (candidate.scheme.bits, candidate.scheme.input_bits) == (weights, inputs):
            chosen.setdefault(candidate.group, index)
    return taylor.policy(list(chosen.values()))


def _operations(policy: mpq.BitPolicy, macs: Mapping[str, float]) -> float:
    return sum(macs[group] * scheme.bits * (scheme.input_bits or 32) for group, scheme in policy.items())


def profile_cost(network: nn.Module, images: list[torch.Tensor], bits: list[int], inputs: list[int]) -> Iterator[Row]:
    """Yield the processor time of profiles of weights alone, and of weights and inputs, one after the other."""
    groups = mpq.find_groups(network)
    for statistics in ("reestimated", "frozen"):
        seconds: dict[str, list[float]] = {}
        rounded = {
            name: mpq.round_candidates(network, images, groups, mpq.make_candidates(groups, bits, inputs=offered))
            for name, offered in (("weights", None), ("both", inputs))
        }
        for _ in range(3):
            for name, known in rounded.items():
                start = time.process_time()
                mpq.profile(
                    network, images, groups=groups, rounded=known, statistics=statistics,
                    likelihood=mpq.Categorical(),
                )  # fmt: skip
                seconds.setdefault(name, []).append(time.process_time() - start)
        least = {name: min(found) for name, found in seconds.items()}
        yield {
            "statistics": statistics,
            "schemes_of_inputs": len(inputs),
            **least,
            "ratio": least["both"] / least["weights"],
        }
