"""Put a policy into effect: packed layers, then repair; all of it or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..finetune.layer import fake_quantized_layers
from ..modules import packed_layers
from ..network.calibration import Calibration
from ..network.forward import ForwardFn
from ..options import RepairOptions
from ..policy import BitPolicy
from ..repair.repair import reestimates, rounds_in_sequence
from ..rounding.rounded_weights import RoundedWeights
from ..tools.kinds import checked_kinds
from .quantizer import Quantizer


@checked_kinds
@torch.inference_mode(False)  # its caller may evaluate
def quantize(
    model: nn.Module,
    policy: BitPolicy,
    batches: Iterable[Any] | Calibration | None = None,
    *,
    rounded: RoundedWeights | None = None,
    repair: RepairOptions | None = None,
    forward_fn: ForwardFn | None = None,
    cache_dir: str | Path | None = None,
) -> nn.Module:
    """Replace the layers that a policy names by packed ones, in place, and make up for what rounding did.

    Args:
        model: Float model; on an error it is left as it was.
        policy: Group to scheme, as in ``allocation.policy``.
        batches: Calibration batches; needed if schemes are rounded by their inputs or quantize these, or if the model
            has BatchNorm layers whose statistics are to be measured again. Without them no bias is corrected.
        rounded: What `round_candidates` returned: its codes are packed, unless they are rounded anew in sequence.
        repair: What is repaired; by default all that helps.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        cache_dir: Folder where each layer is kept once it is rounded in sequence, so that the same call goes on there
            after it was killed.

    Returns:
        The same model.

    Raises:
        ValueError: If batches are needed and there are none, the policy does not fit the model, or its weights are not
            those that were rounded.

    Example:
        >>> from lightning_mpq import WeightScheme
        >>> net = quantize(nn.Sequential(nn.Linear(4, 4)), BitPolicy({"0": WeightScheme(bits=3)}))
        >>> type(net[0]).__name__
        'PackedLinear'
    """
    options = repair or RepairOptions()
    if batches is None and reestimates(model, options):
        raise ValueError(
            "The model has BatchNorm layers, whose statistics must be measured again with quantized weights. "
            "Pass batches=, or repair=RepairOptions(batchnorm=False) to keep those of the float model."
        )
    if batches is None and rounded is not None and rounds_in_sequence(policy, options):
        raise ValueError(
            "Rounding layer by layer needs calibration batches. Pass batches=, or "
            "repair=RepairOptions(sequential=False) to pack the codes of rounded= as they are."
        )
    _refuse_quantized(model, policy)
    if rounded is not None:
        rounded.refuse_changed(model, policy.by_layer())
    given = Calibration.of(model, () if batches is None else batches, forward_fn=forward_fn)
    Quantizer(given.first(None), list(policy.by_layer()), options, rounded, cache_dir=cache_dir).pack(policy)
    return model


def _refuse_quantized(model: nn.Module, policy: BitPolicy) -> None:
    """Refuse layers that are quantized already, before they are looked at as float ones."""
    if learning := fake_quantized_layers(model):
        raise ValueError(
            f"Layer {next(iter(learning))!r} is fake-quantized: the pack() of its handle packs what it has learned; "
            "restore() brings the float layer back, to be quantized anew."
        )
    packed = packed_layers(model)
    if again := [name for name in policy.by_layer() if name in packed]:
        scheme = packed[again[0]].scheme
        raise TypeError(f"Layer {again[0]!r} is packed already ({scheme}); start from the float model.")
