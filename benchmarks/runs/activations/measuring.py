"""One network, its joint Taylor model, and what policies over weights and inputs do to images that nobody has seen."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.curvature import TaylorModel
from lightning_mpq.groups.groups import LayerGroups
from lightning_mpq.modules.workload import measure_workload

from ...methods.joint_policies import bit_operations, uniform_policies
from ...tools.accuracy import Images, compare, outputs

Row = dict[str, Any]
CLIPPED_ON = 4
"""Batches of test images that clipped values are counted on."""


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
        "policy": "float", "weights": 32, "inputs": 32, "average_bits": 32, "bit_operations": None, "predicted": 0.0,
        **compare(network, test, reference), "clipped": 0.0,
    }  # fmt: skip
    found = uniform_policies(taylor, ((8, 8), (4, 8), (4, 4)))
    for name, what in (("W4A8", "BOPs"), ("W4A4", "BOPs"), ("W4A4", "BOPs and bytes")):
        if name not in found:
            continue
        average = _average_bits(found[name], taylor, groups) if "bytes" in what else None
        budget = mpq.Budget(bit_operations=bit_operations(found[name], macs), macs=macs, average_bits=average)
        for objective in ("quadratic", "additive"):
            found[f"{name} {what}, {objective}"] = mpq.allocate(taylor, budget, objective=objective).policy
    done: dict[mpq.BitPolicy, Row] = {}
    for name, policy in found.items():
        if policy not in done:
            packed = mpq.quantize(copy.deepcopy(network), policy, images, rounded=rounded)
            clipped = mpq.clipped_inputs(packed, [batch for batch, _ in test[:CLIPPED_ON]])
            done[policy] = {**compare(packed, test, reference), "clipped": max(clipped.values())}
        schemes = policy.by_layer().values()
        yield {
            "policy": name,
            "weights": sum(scheme.bits for scheme in schemes) / len(schemes),
            "inputs": sum(scheme.input_bits or 32 for scheme in schemes) / len(schemes),
            "average_bits": _average_bits(policy, taylor, groups),
            "bit_operations": bit_operations(policy, macs),
            "predicted": taylor.predict(policy).value,
            **done[policy],
        }


def _average_bits(policy: mpq.BitPolicy, taylor: TaylorModel, groups: LayerGroups) -> float:
    """Return the bits stored per weight, scales and ranges of inputs included."""
    stored = {(each.group, each.scheme): each.stored_bits for each in taylor.candidates}
    return sum(stored[each] for each in policy.items()) / sum(group.weight_count for group in groups)


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
