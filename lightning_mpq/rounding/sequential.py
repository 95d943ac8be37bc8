"""Rounding layer by layer: each one makes up for what the rounding of earlier layers did to its inputs.

With x the inputs of a layer in the float model and z those after the layers rounded so far, the layer is rounded to
W', the weight with the least mean of |W x - W' z|^2, by the second moment of z. Feeding z to error feedback alone, as
GPTQ does, aims at W z and so keeps the errors that came in; aiming at W x takes them back (J. Zhang, Y. Zhou, R. Saab,
"Post-training Quantization for Neural Networks with Provable Guarantees", arXiv:2201.11113).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn

from ..inputs.calibrate import ranges_of_policy
from ..inputs.quantizer import InputRange
from ..network.batchnorm import batch_statistics
from ..network.calibration import Calibration
from ..network.evaluator import check_finite_parameters
from ..network.forward import ForwardFn
from ..network.isolation import isolated
from ..network.layer_kinds import kind_of
from ..network.layerwise import LayerwiseForward, order_of_calls
from ..network.lockstep import LockstepForward
from ..network.named_weights import named_layers
from ..network.placement import refuse_different_layers
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..tools.distributed import broadcast, errors_shared, on_rank_zero
from ..tools.progress import Progress
from ..tools.warning import warn
from .independent import round_policy
from .kept_layers import KeptLayers
from .room import refuse_without_room
from .sequence import LayerSequence


def round_sequentially(
    model: nn.Module,
    batches: Sequence[Any] | Calibration,
    policy: BitPolicy,
    *,
    rounded: Mapping[str, QuantizedRows] | None = None,
    ranges: Mapping[str, InputRange] | None = None,
    damping: float | None = None,
    reestimated: bool = False,
    lockstep: bool = True,
    forward_fn: ForwardFn | None = None,
    progress: Progress | None = None,
    kept: KeptLayers | None = None,
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
        ranges: Layer name to the range of its inputs, where the policy quantizes them: z is then what is left of them.
            By default ranges are found on the batches.
        damping: Added to the diagonal of z's moment, as a part of its mean: it draws W' towards W, and is the damping
            of `ErrorFeedback.factorise`. By default it is chosen for each layer, with how far W is drawn to W', by
            letting one half of the samples judge what was fitted to the other (`choose_fit`).
        reestimated: Whether BatchNorm statistics will be measured again once codes are packed: layers are then rounded
            for what such statistics let through, those of each batch. Codes that make up for statistics which do not
            stay lose more than they gain.
        lockstep: Whether the passes of all batches are held at each layer; otherwise every layer takes passes of its
            own, which hold nothing.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        progress: Called with the fraction done and a message.
        kept: Keeps each layer once it is rounded, and finds those that were rounded before.

    Returns:
        Layer name to rounded weight, in the policy's schemes.

    Raises:
        ValueError: If there is no batch, or policy and model do not fit.
        NonFiniteError: If a weight or an input is NaN or infinite.
        MemoryError: If there is no room for the moments of a single layer.
    """
    refuse_different_layers(model)
    check_finite_parameters(model)
    calibration = Calibration.of(model, batches, forward_fn=forward_fn).listed("sequential rounding")
    schemes = policy.weights()
    by_inputs = [layer for layer, scheme in schemes.items() if scheme.rounding == "second_order"]
    with errors_shared():
        order = _in_sequence(calibration, next(calibration.filled()), by_inputs)
    order = broadcast(order)
    layers = named_layers(model, remove_duplicate=False)
    refuse_without_room({layer: layers[layer] for layer in order})
    ranges = ranges_of_policy(calibration, policy) if ranges is None else ranges
    apart = _apart(calibration, policy, set(order), rounded, damping)
    passes: type[LockstepForward | LayerwiseForward] = LockstepForward if lockstep else LayerwiseForward
    statistics = batch_statistics if reestimated else _as_it_is
    while True:
        sequence = LayerSequence(calibration, {layer: schemes[layer] for layer in order}, apart, damping, kept)
        sequence.quantize_inputs(policy.inputs(), ranges)
        if kept is not None:
            inputs = {layer: (repr(scheme), repr(ranges.get(layer))) for layer, scheme in policy.inputs().items()}
            options = {"damping": damping, "reestimated": reestimated, "lockstep": lockstep, "inputs": inputs}
            on_rank_zero(partial(kept.begin, options, apart))
        repeated = sequence.round(passes, statistics, progress)
        if not repeated:
            break
        # Their inputs were not all seen; it takes as many passes again, for a network that calls layers as data asks.
        order = [layer for layer in order if layer not in repeated]
        apart |= _apart(calibration, policy, set(schemes) - repeated, rounded, damping)
    if sequence.unpaired:
        _say_unpaired(list(sequence.unpaired))
    if sequence.unseen:
        left = set(schemes) - set(sequence.unseen)
        sequence.found |= _apart(calibration, policy, left, rounded, damping)
    return {layer: sequence.found[layer] for layer in schemes}


def _as_it_is(model: nn.Module) -> AbstractContextManager[None]:
    return nullcontext()


def _say_unpaired(layers: Sequence[str]) -> None:
    shown = ", ".join(layers[:8]) + (", ..." if len(layers) > 8 else "")
    warn(
        f"Rounding earlier layers changes which rows of {shown} belong to which samples (sorting, selection, routing "
        "or an early exit by activations): they are rounded by their own inputs, and not to make up for earlier "
        "errors."
    )


def _apart(
    calibration: Calibration,
    policy: BitPolicy,
    in_sequence: Set[str],
    rounded: Mapping[str, QuantizedRows] | None,
    damping: float | None,
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
