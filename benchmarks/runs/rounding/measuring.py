"""One layer rounded by the search as it is, and with every range of every grid solved for all rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_mpq import WeightScheme, find_groups, make_candidates, round_candidates
from lightning_mpq.groups.candidates import Candidate
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.layer_kinds import weight_rows
from lightning_mpq.network.named_weights import named_layers
from lightning_mpq.quantizers import InputMoment, QuantizedRows, round_rows
from lightning_mpq.quantizers.clip_search import trial_ratios
from lightning_mpq.quantizers.output_error import output_error
from lightning_mpq.rounding.input_moments import input_moments

from ...problems.subjects import Subject
from ...tools.results import Row


def measure(subject: Subject, layers: Sequence[str]) -> Iterator[Row]:
    """Yield a row for each layer and width: errors on samples that were not rounded by, and processor seconds."""
    groups = [group for group in find_groups(subject.model) if group.layers[0] in layers]
    modules = {name: named_layers(subject.model)[name] for name in layers}
    own = input_moments(Calibration.of(subject.model, subject.calibration), modules)
    other = input_moments(Calibration.of(subject.model, subject.unseen), modules)
    for group in groups:
        layer = group.layers[0]
        offered = make_candidates([group], granularities=("channel",))
        schemes = [candidate.scheme.weight for candidate in offered]
        rows, key = weight_rows(modules[layer]).detach(), id(modules[layer].weight)
        began = time.process_time()
        input_moments(Calibration.of(subject.model, subject.calibration), {layer: modules[layer]})
        passed = time.process_time() - began
        began = time.process_time()
        rounded = round_candidates(subject.model, subject.calibration, [group], offered)
        shipped = time.process_time() - began - passed
        began = time.process_time()
        every = {scheme: every_range(rows, own[key], scheme) for scheme in schemes}
        full = time.process_time() - began
        judge = other[key].matrix()
        for candidate in rounded.candidates:
            scheme = candidate.scheme.weight
            alike = [each for each in schemes if each.bits == scheme.bits]
            best = min(alike, key=lambda each: every[each][1] * 4 ** (_stored(offered, each) / rows.numel()))
            yield {
                "layer": layer,
                "rows": len(rows),
                "columns": rows.shape[1],
                "bits": scheme.bits,
                "grid": scheme.grid,
                "grid_of_all": best.grid,
                "error": _error(rows, rounded.of_layer(layer, scheme).dequantize(), judge),
                "error_on_fitted": rounded.errors[layer, scheme],
                "unseen_told": rounded.unseen[layer],
                "error_of_all": _error(rows, every[best][0], judge),
                "processor_seconds": shipped,
                "processor_seconds_of_all": full,
            }


def every_range(rows: Tensor, moment: InputMoment, scheme: WeightScheme) -> tuple[Tensor, float]:
    """Return the weight with every row in the range that leaves the least error of its output, and that error."""
    form, damping = moment.form(), moment.damping()
    fixed = [_with_range(scheme, ratio) for ratio in trial_ratios(scheme)]
    found: list[QuantizedRows] = [each.quantized for each in round_rows(rows, form, fixed, damping=damping)]
    weights = torch.stack([each.dequantize() for each in found])
    parts = (len(form), -1)
    errors = torch.stack([output_error((each - rows).unflatten(0, parts), form.to(rows)).flatten() for each in weights])
    best = errors.argmin(0)
    return weights[best, torch.arange(len(rows))], float(errors.amin(0).sum())


def _with_range(scheme: WeightScheme, ratio: float) -> WeightScheme:
    return WeightScheme(scheme.bits, scheme.granularity, scheme.grid, clip=ratio, rounding=scheme.rounding)


def _stored(offered: Sequence[Candidate], scheme: WeightScheme) -> float:
    return next(candidate.stored_bits for candidate in offered if candidate.scheme.weight == scheme)


def _error(rows: Tensor, quantized: Tensor, moment: Tensor) -> float:
    """Return the squared error of the output, relative to the output."""
    parts = (len(moment), -1)
    change, output = ((each.to(moment).unflatten(0, parts)) for each in (quantized - rows, rows))
    return float(output_error(change, moment).sum() / output_error(output, moment).sum())
