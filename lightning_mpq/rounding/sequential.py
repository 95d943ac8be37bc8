"""Rounding layer by layer: each one makes up for what the rounding of earlier layers did to its inputs.

With x the inputs of a layer in the float model and z those after the layers rounded so far, the layer is rounded to
W', the weight with the least mean of |W x - W' z|^2, by the second moment of z. Feeding z to error feedback alone, as
GPTQ does, aims at W z and so keeps the errors that came in; aiming at W x takes them back (J. Zhang, Y. Zhou, R. Saab,
"Post-training Quantization for Neural Networks with Provable Guarantees", arXiv:2201.11113).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..network.batchnorm import batch_statistics
from ..network.calibration import Calibration
from ..network.evaluator import check_finite_parameters
from ..network.forward import ForwardFn
from ..network.isolation import isolated
from ..network.layer_kinds import kind_of, rows_to_weight, weight_rows
from ..network.layerwise import LayerwiseForward, Stop, order_of_calls
from ..network.lockstep import LockstepForward
from ..network.named_weights import named_layers
from ..policy import BitPolicy
from ..quantizers import QuantizedRows, round_rows
from ..quantizers.input_moments import unfolded_chunks
from ..schemes import WeightScheme
from ..tools.distributed import (
    broadcast,
    errors_shared,
    gather,
    on_rank_zero,
    sum_over_ranks,
)
from ..tools.progress import Progress
from .independent import round_policy


def round_sequentially(
    model: nn.Module,
    batches: Sequence[Any] | Calibration,
    policy: BitPolicy,
    *,
    rounded: Mapping[str, QuantizedRows] | None = None,
    damping: float = 0.01,
    reestimated: bool = False,
    lockstep: bool = True,
    forward_fn: ForwardFn | None = None,
    progress: Progress | None = None,
) -> dict[str, QuantizedRows]:
    """Round the layers of a policy in the order in which they are called; for ``pack_model(rounded=)``.

    All layers together take one pass through the float model and one through a copy that is rounded so far; the passes
    of all batches wait at each layer for its rounding (see `LockstepForward` for the memory). Embeddings, layers that
    share a weight and layers that are called several times in one pass are rounded by their inputs in the float model,
    as `round_policy` does.

    Where torch.distributed is in use, every process calls this with its own batches: moments are summed over all of
    them, rank 0 rounds, and every process gets its codes.

    Args:
        model: The float model, left as it was.
        batches: Calibration batches.
        policy: The schemes; layers whose scheme says that they are rounded to nearest are so.
        rounded: The policy's layers as they were rounded before, such as ``RoundedWeights.of_policy(policy)``: taken
            for the layers that cannot be rounded in sequence; by default these are rounded by `round_policy`.
        damping: Added to the diagonal of z's moment, as a part of its mean: it draws W' towards W, and is the damping
            of `ErrorFeedback.factorise`.
        reestimated: Whether BatchNorm statistics will be measured again once codes are packed: layers are then rounded
            for what such statistics let through, those of each batch. Codes that make up for statistics which do not
            stay lose more than they gain.
        lockstep: Whether the passes of all batches are held at each layer; otherwise every layer takes passes of its
            own, which hold nothing.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        progress: Called with the fraction done and a message.

    Returns:
        Layer name to rounded weight, in the policy's schemes.

    Raises:
        ValueError: If there is no batch, or policy and model do not fit.
        NonFiniteError: If a weight or an input is NaN or infinite.
    """
    check_finite_parameters(model)
    calibration = Calibration.of(model, batches, forward_fn=forward_fn).listed("sequential rounding")
    schemes = policy.weights()
    by_inputs = [layer for layer, scheme in schemes.items() if scheme.rounding == "second_order"]
    with errors_shared():
        order = _in_sequence(calibration, next(calibration.filled()), by_inputs)
    order = broadcast(order)
    found = _apart(calibration, policy, set(order), rounded, damping)
    twin = copy.deepcopy(model)
    copies = named_layers(twin, remove_duplicate=False)
    for layer, quantized in found.items():
        _set_weight(copies[layer], quantized)
    floats = {name: named_layers(model, remove_duplicate=False)[name] for name in order}
    twins = {name: copies[name] for name in order}
    passes: type[LockstepForward | LayerwiseForward] = LockstepForward if lockstep else LayerwiseForward
    statistics = batch_statistics if reestimated else nullcontext
    with (
        isolated(model),
        isolated(twin),
        statistics(model),
        statistics(twin),
        torch.no_grad(),
        passes(calibration, floats, "after") as float_passes,
        passes(calibration.on(twin), twins, "before") as twin_passes,
    ):
        for number, (layer, module) in enumerate(floats.items()):
            if progress is not None:
                progress(number / len(order), f"round {layer}, the {number} layers before it being rounded")
            moments = _joint_moments(module, float_passes.at(layer), twin_passes.at(layer))
            if not all(torch.isfinite(moment).all() for moment in moments):
                raise NonFiniteError(f"The inputs of the layer {layer!r} are NaN or infinite, or too large to square.")
            found[layer] = on_rank_zero(partial(_round_to_float_outputs, module, moments, schemes[layer], damping))
            _set_weight(twins[layer], found[layer])
    return {layer: found[layer] for layer in schemes}


def _apart(
    calibration: Calibration,
    policy: BitPolicy,
    in_sequence: Set[str],
    rounded: Mapping[str, QuantizedRows] | None,
    damping: float,
) -> dict[str, QuantizedRows]:
    """Return the rounded weights of the layers that are not rounded in sequence."""
    schemes = {layer: scheme for layer, scheme in policy.weights().items() if layer not in in_sequence}
    if rounded is not None:
        return {layer: rounded[layer] for layer in schemes}
    return round_policy(calibration, BitPolicy(schemes), damping=damping) if schemes else {}


def _in_sequence(calibration: Calibration, batch: Any, layers: Sequence[str]) -> list[str]:
    """Return the layers that can be rounded in sequence, in the order of their calls."""
    model = calibration.model
    known = named_layers(model, remove_duplicate=False)
    modules = {name: known[name] for name in layers if _has_known_inputs(known[name])}
    with isolated(model):
        calls = order_of_calls(calibration, batch, modules)
    weights = [id(module._parameters.get("weight")) for module in model.modules()]
    return [name for name in calls if calls.count(name) == 1 and weights.count(id(modules[name].weight)) == 1]


def _has_known_inputs(layer: nn.Module) -> bool:
    """Tell whether calls of a layer show what its weight is multiplied with."""
    kind = kind_of(layer)
    return kind is not None and kind.operation in ("linear", "convolution", "transposed")


def _set_weight(module: nn.Module, quantized: QuantizedRows) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight.copy_(rows_to_weight(module, quantized.dequantize(weight.dtype), weight.shape))


def _joint_moments(module: nn.Module, floats: Iterable[Stop], twins: Iterable[Stop]) -> tuple[Tensor, Tensor]:
    """Return the means of x z^T and z z^T, [groups, columns, columns], with x from the model and z from its twin."""
    cross = own = torch.zeros(())
    count = 0
    with errors_shared():
        for with_x, with_z in zip(floats, twins, strict=True):
            assert with_x.output is not None
            chunks = [unfolded_chunks(module, stop.inputs, with_x.output.shape) for stop in (with_x, with_z)]
            for x, z in zip(*chunks, strict=True):
                wide = torch.float32 if x.device.type == "mps" else torch.float64
                cross = (x.mT @ z).to(wide) + cross.to(x.device)
                own = (z.mT @ z).to(wide) + own.to(x.device)
                count += z.shape[1]
    count = max(sum(gather(count)), 1)
    return sum_over_ranks(cross) / count, sum_over_ranks(own) / count


def _round_to_float_outputs(
    module: nn.Module, moments: tuple[Tensor, Tensor], scheme: WeightScheme, damping: float
) -> QuantizedRows:
    """Round W' = (W X + d W) (M + d I)^-1 with X = mean of x z^T and M = mean of z z^T; in the given scheme."""
    cross, own = moments
    rows = weight_rows(module).detach()
    weights = rows.unflatten(0, (len(own), -1)).to(own.dtype)
    mean = own.diagonal(dim1=1, dim2=2).mean(1)
    shift = damping * torch.where(mean > 0, mean, torch.ones_like(mean))[:, None, None]
    identity = torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
    target = torch.linalg.solve(own + shift * identity, weights @ cross + shift * weights, left=False)
    return round_rows(target.flatten(0, 1).to(rows.dtype), own, [scheme], damping=damping)[0].quantized
