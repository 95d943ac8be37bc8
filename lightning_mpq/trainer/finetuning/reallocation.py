"""Bits that move on the way: the loss is profiled again around the trained weights, and the plan solved again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from ...finetune import FakeQuantization
from ...finetune.plan_change import change_plan
from ...options import FinetuneOptions
from ...pipeline.loss_change import LossChange
from ...pipeline.pipeline import Pipeline
from ...repair.repair import Repair, final_codes
from ...report import ReallocationRow


def reallocate(
    model: nn.Module,
    handle: FakeQuantization,
    optimizers: Sequence[Optimizer],
    pipeline: Pipeline,
    batches: Sequence[Any],
    options: FinetuneOptions,
    epoch: int,
) -> ReallocationRow:
    """Solve again under the same budget, move to the new bits, and keep the move if the task loss does not grow.

    The curvature is that of the network with its latent weights, the unrounded ones that are trained; what was learned
    there may ask for other bits than the weights at the start did. Statistics and biases are repaired behind the move.

    Args:
        model: The fake-quantized model.
        handle: Its fake-quantized layers.
        optimizers: Hold the learned scales; those of moved layers are replaced in place, without a memory.
        pipeline: Profiles and solves.
        batches: Calibration batches.
        options: How fine-tuning is done.
        epoch: For the row.

    Returns:
        What moved, with the task loss on the batches before and after.
    """
    with handle.float_weights():
        plan = pipeline.plan(model, batches)
        old, policy = handle.policy, plan.allocation.policy
        moved = {group: (old[group].bits, policy[group].bits) for group in old if old[group] != policy[group]}
        codes = {}
        if moved:
            codes = final_codes(model, batches, policy, pipeline.repair, plan.rounded, pipeline.forward_fn)
    change = LossChange(model, batches, "task", forward_fn=pipeline.forward_fn, loss_fn=pipeline.loss_fn)
    if not moved:
        return _told(ReallocationRow(epoch, {}, change.reference, change.reference, kept=False))
    repair = Repair(model, batches, policy.by_layer(), pipeline.repair, pipeline.forward_fn)
    replaced, undo = change_plan(handle, policy, codes, learn_scales=options.learn_scales, margin=options.margin)
    try:
        repair.apply()
        gain = -change.measure()
    except BaseException:
        undo()
        raise
    if gain < 0:
        undo()
    else:
        _hold(optimizers, replaced)
        torch._dynamo.reset()  # what was compiled has the old grids in it
    return _told(ReallocationRow(epoch, moved, change.reference, change.reference - gain, kept=gain >= 0))


def _hold(optimizers: Sequence[Optimizer], replaced: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Put new learned scales where the optimizers hold the old ones, so that their order is that of a resumed fit."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [replaced.get(held, held) for held in group["params"]]
        for gone in replaced:
            optimizer.state.pop(gone, None)


def _told(row: ReallocationRow) -> ReallocationRow:
    bits = ", ".join(f"{group} {before} -> {after} bits" for group, (before, after) in row.moved.items())
    verdict = "" if not row.moved else ": kept" if row.kept else ": taken back"
    rank_zero_info(
        f"MixedPrecisionQuantization: allocated again in epoch {row.epoch}: {bits or 'the same plan'}; task loss "
        f"{row.loss_before:.4g} -> {row.loss_after:.4g}{verdict}"
    )
    return row
