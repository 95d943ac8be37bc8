"""The stages of one job on one random model: the most memory that each takes, and its CPU time."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

import lightning_mpq as mpq
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.pipeline.kept_rounding import KeptRounding
from lightning_mpq.quantizers import InputMoment

from ...problems.llama import random_llama, random_tokens, training_step
from ...tools.anonymous_memory import PeakMemory
from ...tools.results import Row


def stages(shape: str, dtype: str, widths: Sequence[int], batches: int, samples: int, length: int) -> list[Row]:
    """Return a row for each stage.

    ``peak_bytes`` is what the process held at most, above what it held before the model was there.

    Args:
        shape: Name of the model's shape.
        dtype: Type of its weights.
        widths: Bits that are offered to every layer, with a scale a channel on a symmetric grid.
        batches: Number of batches.
        samples: Samples of each.
        length: Tokens of each sample.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: list[Row] = []
    for first in (torch.float32, getattr(torch, dtype)):  # what torch itself takes at first, for kernels of each type
        training_step(random_llama("tiny", first), random_tokens("tiny", 1, 1, 8)[0])
    with PeakMemory() as empty:
        pass
    model = random_llama(shape, getattr(torch, dtype))
    data = random_tokens(shape, batches, samples, length)
    weights = sum(parameter.numel() for parameter in model.parameters())
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    estimated: dict[str, int] = {}
    minutes: dict[str, float] = {}
    options = mpq.CandidateOptions(bits=tuple(widths), granularities=("channel",), grids=("symmetric",))

    @contextmanager
    def stage(name: str, passes: int = batches) -> Iterator[None]:
        with PeakMemory() as memory:
            yield
        tokens = passes * samples * length
        rows.append(
            {
                "shape": shape,
                "dtype": dtype,
                "weights": weights,
                "weight_bytes": weight_bytes,
                "moment_bytes": moment,
                "tokens": tokens,
                "stage": name,
                "peak_bytes": memory.peak - empty.before,
                "estimated_bytes": estimated.get(name),
                "cpu_seconds": round(memory.seconds, 2),
                "wall_seconds": round(memory.wall_seconds, 2),
                "estimated_seconds": round(60 * minutes[name], 2) if name in minutes else None,
                "ns_a_weight_and_token": round(memory.seconds * 1e9 / weights / tokens, 3),
            }
        )

    groups = mpq.find_groups(model)
    offered = options.candidates(groups)
    named = dict(model.named_modules())
    moment = max(InputMoment.bytes_of_layer(named[layer]) for group in groups for layer in group.layers)
    with stage("training step", 1):
        training_step(model, data[0])
    meaning = mpq.CurvatureOptions(likelihood=mpq.Categorical(class_dim=-1))
    with tempfile.TemporaryDirectory() as folder:
        found = mpq.estimate(model, data, candidates=options, curvature=meaning, cache_dir=folder)
        estimated |= {each.name: each.bytes for each in found.stages}
        minutes |= {each.name: each.minutes for each in found.stages}
        with stage("round"):
            kept = KeptRounding(folder, Calibration.of(model, data))
            rounded = mpq.round_candidates(model, data, groups, offered, kept=kept)
        with stage("profile"):
            taylor = mpq.profile(model, data, groups=groups, rounded=rounded, likelihood=mpq.Categorical(class_dim=-1))
        with stage("allocate"):
            allocation = mpq.allocate(taylor, mpq.Budget(average_bits=4.0), time_limit=5)
        with stage("quantize"):
            mpq.quantize(model, allocation.policy, data, rounded=rounded)
        del rounded
    return rows
