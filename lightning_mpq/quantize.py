"""Put a policy into effect: packed layers, then repaired statistics; all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .calling import ForwardFn
from .correction import (
    batchnorm_layers,
    measure_batchnorm,
    reestimate_batchnorm,
    restore_statistics,
    save_statistics,
)
from .modules import pack_model, restore_layers
from .policy import BitPolicy
from .quantizers import QuantizedRows
from .rounded_weights import RoundedWeights
from .rounding import round_policy


def quantize(
    model: nn.Module,
    policy: BitPolicy,
    batches: Iterable[Any] | None = None,
    *,
    rounded: RoundedWeights | None = None,
    forward_fn: ForwardFn | None = None,
    reestimate: bool = True,
) -> nn.Module:
    """Replace the layers that a policy names by packed ones, in place, and re-estimate BatchNorm statistics.

    Args:
        model: Float model; on an error it is left as it was.
        policy: Group to scheme, as in ``allocation.policy``.
        batches: Calibration batches; needed if the model has BatchNorm layers and ``reestimate`` is set, or if
            schemes are rounded by their inputs and ``rounded`` is not given.
        rounded: What `round_candidates` returned, so that the very codes that were profiled are packed.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        reestimate: Whether BatchNorm statistics are measured again behind the quantized weights.

    Returns:
        The same model.

    Raises:
        ValueError: If batches are needed and there are none, or the policy does not fit the model.

    Example:
        >>> from lightning_mpq.policy import WeightScheme
        >>> net = quantize(nn.Sequential(nn.Linear(4, 4)), BitPolicy({"0": WeightScheme(bits=3)}))
        >>> type(net[0]).__name__
        'PackedLinear'
    """
    repair = reestimate and bool(batchnorm_layers(model))
    if repair and batches is None:
        raise ValueError(
            "The model has BatchNorm layers, whose statistics must be measured again behind quantized weights. "
            "Pass batches=, or reestimate=False to keep those of the float model."
        )
    known: Sequence[Any] = batches if isinstance(batches, Sequence) else list(batches or ())
    codes = codes_of(model, policy, known, rounded, forward_fn)
    before = measure_batchnorm(model, known, forward_fn) if repair else None
    undo = apply_policy(model, policy, codes)
    try:
        if repair:
            reestimate_batchnorm(model, known, forward_fn, before)
    except BaseException:
        undo()
        raise
    return model


def codes_of(
    model: nn.Module,
    policy: BitPolicy,
    batches: Sequence[Any],
    rounded: RoundedWeights | None = None,
    forward_fn: ForwardFn | None = None,
) -> dict[str, QuantizedRows]:
    """Return the rounded weights that `pack_model` cannot make by itself, by layer.

    Raises:
        ValueError: If a scheme is rounded by its inputs, and there are neither rounded weights nor batches.
    """
    if rounded is not None:
        return rounded.of_policy(policy)
    if any(scheme.needs_inputs for scheme in policy.values()):
        return round_policy(model, batches, policy, forward_fn=forward_fn)
    return {}


def apply_policy(
    model: nn.Module, policy: BitPolicy, rounded: Mapping[str, QuantizedRows] | None = None
) -> Callable[[], None]:
    """Pack the layers of a policy; return the function that brings them and the BatchNorm statistics back."""
    layers = batchnorm_layers(model)
    statistics = save_statistics(layers)
    floats = pack_model(model, policy, rounded)

    def undo() -> None:
        restore_layers(model, floats)
        restore_statistics(layers, statistics)

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
