"""What one batch says of a whole job before it begins: the memory and the time of its passes, and of rounding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature.estimators.layer_taps import LayerTaps
from ..curvature.estimators.perturbation import Perturbations
from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..network.batches import split_batch, to_device
from ..network.calibration import Calibration
from ..network.evaluator import Evaluator
from ..network.forward import device_of
from ..network.guessed_likelihood import guess_likelihood
from ..network.hooks import hooked
from ..network.isolation import isolated
from ..network.layer_kinds import row_parts, weight_rows
from ..network.named_weights import held_by
from ..quantizers import round_rows
from ..rounding.packed_rows import PackedRows
from ..schemes import WeightScheme
from ..tools.live_bytes import LiveBytes
from ..tools.process_wide import quiet

_SAMPLE = 2**18
"""Weights that are rounded to see how long it takes, times schemes."""


@dataclass(frozen=True)
class Passes:
    """What passes over a batch take beyond the model.

    Attributes:
        forward_bytes: The most that a forward pass without gradients holds.
        held_bytes: The most that such a pass holds while it waits at a layer.
        backward_bytes: The most that a forward and a backward pass hold, to the gradients of all layers' outputs.
        forward_seconds: Of the former.
        backward_seconds: Of the latter.
    """

    forward_bytes: int
    held_bytes: int
    backward_bytes: int
    forward_seconds: float
    backward_seconds: float


def passes_over(
    calibration: Calibration,
    groups: Sequence[LayerGroup],
    candidates: Sequence[Candidate],
    chunk_size: int | None,
    batch: Any,
) -> Passes:
    """Let a batch pass through the model as rounding and a profile do; the model is left as it was.

    Args:
        calibration: The model, and how it is called.
        groups: The groups.
        candidates: In the order of groups.
        chunk_size: Most samples at once in a profile.
        batch: The batch.
    """
    model = calibration.model
    batch = to_device(batch, device_of(model))
    perturbations = Perturbations(model, groups, candidates)
    known = [*model.parameters(), *model.buffers()]
    held = [0]
    with isolated(model), quiet():
        live = LiveBytes(known)

        def look(*_: object) -> None:
            held.append(live.now)

        owners = [(held_by(module)[0], look) for module in perturbations.modules.values()]
        with torch.no_grad(), hooked(before=owners), live:
            forward = _timed(partial(calibration.forward, batch))
        chunk = next(split_batch(batch, chunk_size))
        backward = LiveBytes(known)
        with backward:
            slow = _timed(partial(_backward, calibration, perturbations, chunk))
    return Passes(live.peak, max(held), backward.peak, forward, slow)


def _backward(calibration: Calibration, perturbations: Perturbations, batch: Any) -> None:
    evaluator = Evaluator(calibration)
    taps = LayerTaps(evaluator, perturbations, lambda use, gradient: None, None, lambda use, gradient: None)
    with taps.attached():
        outputs = taps.outputs(batch)
        meaning = calibration.likelihood or guess_likelihood(outputs.detach(), batch, evaluator.output_name)
        generator = torch.Generator(device=outputs.device)
        if outputs.requires_grad:
            outputs.backward(meaning.score(outputs.detach(), batch, generator))


@dataclass(frozen=True)
class Speeds:
    """How fast this machine rounds.

    Attributes:
        round_seconds: A weight and scheme, by second-order rounding.
        change_seconds: A weight and scheme, unpacked and compared with its float weight.
        product_seconds: A multiplication and an addition of a matrix product in float64.
    """

    round_seconds: float
    change_seconds: float
    product_seconds: float


def speeds(layer: nn.Module, schemes: Sequence[WeightScheme]) -> Speeds:
    """Round a few rows of a layer, as if its inputs were noise, and multiply two matrices."""
    rows = weight_rows(layer).detach()
    rows = rows[: len(rows) // row_parts(layer)].float()
    columns = rows.shape[1]
    height = max(1, _SAMPLE // columns // max(len(schemes), 1))
    few = rows.repeat(ceil(height / len(rows)), 1)[:height]
    noise = torch.randn(64, columns, generator=torch.Generator().manual_seed(0)).to(rows)
    moment = (noise.mT @ noise / len(noise) + torch.eye(columns).to(rows)).double()[None]
    factor = torch.randn(256, 256, dtype=torch.float64, device=moment.device)
    product = min(_timed(lambda: factor @ factor) for _ in range(3)) / 256**3
    found = round_rows(few, moment, schemes)  # the first time is not taken: much is new to it
    seconds = _timed(lambda: round_rows(few, moment, schemes)) - 4 * columns**3 * product
    packed = [PackedRows.of(each.quantized) for each in found]
    changed = _timed(lambda: [each.unpacked().dequantize(torch.float64) - few for each in packed])
    weights = few.numel() * max(len(schemes), 1)
    return Speeds(max(seconds, 0.0) / weights, changed / weights, product)


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    result = work()
    if isinstance(result, Tensor) and result.device.type == "cuda":
        torch.cuda.synchronize(result.device)
    return time.perf_counter() - start
