"""Put a policy into effect: packed layers, then repair; all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..modules import pack_model, restore_layers
from ..network.batchnorm import batchnorm_layers
from ..network.forward import ForwardFn
from ..options import RepairOptions
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..repair.batchnorm import restore_statistics, save_statistics
from ..repair.repair import Repair, final_codes, reestimates, rounds_in_sequence
from ..rounding.rounded_weights import RoundedWeights


def quantize(
    model: nn.Module,
    policy: BitPolicy,
    batches: Iterable[Any] | None = None,
    *,
    rounded: RoundedWeights | None = None,
    repair: RepairOptions | None = None,
    forward_fn: ForwardFn | None = None,
) -> nn.Module:
    """Replace the layers that a policy names by packed ones, in place, and make up for what rounding did.

    Args:
        model: Float model; on an error it is left as it was.
        policy: Group to scheme, as in ``allocation.policy``.
        batches: Calibration batches; needed if schemes are rounded by their inputs, or if the model has BatchNorm
            layers whose statistics are to be measured again. Without them no bias is corrected.
        rounded: What `round_candidates` returned: its codes are packed, unless they are rounded anew in sequence.
        repair: What is repaired; by default all that helps.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.

    Returns:
        The same model.

    Raises:
        ValueError: If batches are needed and there are none, or the policy does not fit the model.

    Example:
        >>> from lightning_mpq import WeightScheme
        >>> net = quantize(nn.Sequential(nn.Linear(4, 4)), BitPolicy({"0": WeightScheme(bits=3)}))
        >>> type(net[0]).__name__
        'PackedLinear'
    """
    options = repair or RepairOptions()
    if batches is None and reestimates(model, options):
        raise ValueError(
            "The model has BatchNorm layers, whose statistics must be measured again behind quantized weights. "
            "Pass batches=, or repair=RepairOptions(batchnorm=False) to keep those of the float model."
        )
    if batches is None and rounded is not None and rounds_in_sequence(policy, options):
        raise ValueError(
            "Rounding layer by layer needs calibration batches. Pass batches=, or "
            "repair=RepairOptions(sequential=False) to pack the codes of rounded= as they are."
        )
    known: Sequence[Any] = batches if isinstance(batches, Sequence) else list(batches or ())
    codes = final_codes(model, known, policy, options, rounded, forward_fn)
    mending = Repair(model, known, policy.by_layer(), options, forward_fn)
    with packed_unless_it_fails(model, policy, codes):
        mending.apply()
    return model


def apply_policy(
    model: nn.Module, policy: BitPolicy, rounded: Mapping[str, QuantizedRows] | None = None
) -> Callable[[], None]:
    """Pack the layers of a policy; return the function that brings them, biases and BatchNorm statistics back."""
    layers = batchnorm_layers(model)
    statistics = save_statistics(layers)
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = [modules[name] for name in policy.by_layer() if name in modules]
    biases = {bias: bias.detach().clone() for owner in owners if (bias := owner._parameters.get("bias")) is not None}
    floats = pack_model(model, policy, rounded)

    def undo() -> None:
        restore_layers(model, floats)
        restore_statistics(layers, statistics)
        with torch.no_grad():
            for bias, before in biases.items():
                bias.copy_(before)

    return undo


@contextmanager
def temporarily_packed(
    model: nn.Module, policy: BitPolicy, rounded: Mapping[str, QuantizedRows] | None = None
) -> Iterator[nn.Module]:
    """Pack the layers of a policy for the time of a ``with`` block; afterwards the float model is back."""
    undo = apply_policy(model, policy, rounded)
    try:
        yield model
    finally:
        undo()


@contextmanager
def packed_unless_it_fails(
    model: nn.Module, policy: BitPolicy, rounded: Mapping[str, QuantizedRows] | None = None
) -> Iterator[nn.Module]:
    """Pack the layers of a policy for good; an error in the ``with`` block brings the float model back."""
    undo = apply_policy(model, policy, rounded)
    try:
        yield model
    except BaseException:
        undo()
        raise
