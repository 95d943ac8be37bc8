"""Policies of ggml's types for a language model, chosen by us and read from a file of llama.cpp, and what they need."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import lightning_mpq as mpq
from lightning_mpq.rounding.rounded_weights import RoundedWeights
from lightning_mpq.targets.gguf_file import floats_of, opened
from lightning_mpq.targets.gguf_names import tensor_names

OFFERED = ("q4_0", "q5_0", "q8_0", "q4_k", "q5_k", "q6_k")
"""Types to choose from, few for the sake of time. The package has the model in Q4_1, whose levels Q4_1 and Q5_1 hold
exactly: weights would lose nothing in these, which says nothing of other models, so that they are not among them."""


def decided_by(
    network: nn.Module, plain: Path, calibration: list[Tensor], likelihood: mpq.Likelihood
) -> tuple[mpq.TaylorModel, RoundedWeights, int]:
    """Return the Taylor model of the types that are offered, weights in them, and the bytes of a file beside these."""
    target = mpq.targets.LlamaCpp(plain)
    groups, candidates = mpq.targets.offer(target, network, mpq.CandidateOptions(schemes=schemes(OFFERED)))
    of_file = mpq.Budget(file_bytes=plain.stat().st_size)
    alike = [c for c in candidates if c.scheme.weight.grid == "q8_0"]  # what is beside tensors does not depend on types
    rest = mpq.targets.with_file_rest(of_file, target, network, groups, alike, calibration[0][:1]).file_rest
    assert rest is not None
    rounded = mpq.round_candidates(network, calibration, groups, candidates)
    taylor = mpq.profile(network, calibration, groups=groups, rounded=rounded, likelihood=likelihood)
    return taylor, rounded, rest


def write(
    network: nn.Module,
    policy: mpq.BitPolicy,
    plain: Path,
    calibration: list[Tensor],
    path: Path,
    rounded: RoundedWeights | None = None,
) -> None:
    """Write a policy of a network, which is left as it was, into a file; llama.cpp's outputs are compared with ours.

    Args:
        network: The float model.
        policy: The policy.
        plain: The float model's file.
        calibration: What it is rounded by.
        path: Where to.
        rounded: What to take as it is; None to round layer after layer.
    """
    repair = mpq.RepairOptions(sequential=rounded is None)
    packed = mpq.quantize(copy.deepcopy(network), policy, calibration, rounded=rounded, repair=repair)
    mpq.export_for(mpq.targets.LlamaCpp(plain), packed, path, calibration[0][:1])


def schemes(names: Sequence[str]) -> list[mpq.WeightScheme]:
    """Return types of ggml as schemes."""
    known = {scheme.grid: scheme for scheme in mpq.targets.LlamaCpp().schemes("second_order")}
    return [known[name] for name in names]


def policy_like(path: Path, network: nn.Module) -> mpq.BitPolicy:
    """Return the policy that gives every layer the type that its tensor has in a file."""
    kinds = {tensor.name: tensor.tensor_type.name.lower() for tensor in opened(path).tensors}
    names, found = tensor_names(network), {}
    groups = mpq.find_groups(network)
    for group in groups:
        tensors = [names.get(f"{layer}.weight") for layer in group.layers]
        (found[group.name],) = schemes([next(kinds[tensor] for tensor in tensors if tensor in kinds)])
    return mpq.BitPolicy(found, {group.name: group.layers for group in groups})


def importance(network: nn.Module, calibration: list[Tensor], folder: Path) -> Mapping[str, Tensor]:
    """Return the mean squares of the inputs of each Linear layer, by the names of tensors in GGUF."""
    (scheme,), groups = schemes(["q8_0"]), mpq.find_groups(network)
    policy = mpq.BitPolicy({group.name: scheme for group in groups}, {group.name: group.layers for group in groups})
    _, path = mpq.targets.llama_recipe(network, policy, folder, calibration)
    tensors = {tensor.name: torch.from_numpy(floats_of(tensor)).flatten() for tensor in opened(path).tensors}
    sums = {name.removesuffix(".in_sum2"): values for name, values in tensors.items() if name.endswith(".in_sum2")}
    return {name: values / tensors[f"{name}.counts"] for name, values in sums.items()}
