"""Optimizers of fine-tuning: fresh ones, with the learned scales beside the weights, and their learning rates."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import cos, pi
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ...finetune import FakeQuantization
from ...finetune.handle import Learned

Schedule = Literal["cosine", "constant"]


def renew_optimizers(trainer: L.Trainer) -> None:
    """Replace the Trainer's optimizers by what ``configure_optimizers`` returns now, without a memory of before."""
    before = {id(optimizer) for optimizer in trainer.optimizers}
    trainer.strategy.setup_optimizers(trainer)
    for optimizer in trainer.optimizers:
        if id(optimizer) in before:
            rank_zero_warn(
                f"configure_optimizers returned the same {type(optimizer).__name__} as before, made elsewhere; its "
                "moments are cleared for fine-tuning. Make a new optimizer in configure_optimizers.",
                category=UserWarning,
            )
            optimizer.state.clear()


def prepare_optimizers(
    trainer: L.Trainer, handle: FakeQuantization, factor: float, scale_factor: float, automatic: bool
) -> None:
    """Give the learned scales to the optimizers of their weights, and take the learning rates from schedulers.

    A scale learns where its weight does: in a further group of the same optimizer, without weight decay (in the only
    group of LBFGS). What no optimizer holds, or is frozen, stays as it is, and is named.

    Args:
        trainer: Its optimizers are fresh.
        handle: The fake-quantized layers.
        factor: On the learning rates.
        scale_factor: On top of it, for the scales.
        automatic: Whether Lightning steps; schedulers then rest, since ``set_learning_rates`` takes their part. They
            stay where the module asks for them, with the rates that are set.

    Raises:
        ValueError: If no optimizer holds any of the quantized weights.
    """
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = factor * float(group.get("max_lr", group.get("initial_lr", group.get("lr", 0.0))))
    _warn_of_copies(trainer)
    held = [weight for weight, _ in handle.weights.values() if weight.requires_grad]
    learning = {id(weight) for weight in held if _home([weight], trainer.optimizers) is not None}
    resting = [name for name, (weight, _) in handle.weights.items() if id(weight) not in learning]
    for _, parameter, weights in list(handle.learned()):
        parameter.requires_grad_(any(id(weight) in learning for weight in weights))
    if len(resting) == len(handle.weights):
        raise ValueError(
            "No optimizer holds a quantized weight that learns, so there is nothing to fine-tune. Let "
            "configure_optimizers return an optimizer of self.parameters(), or set finetune_epochs=0."
        )
    if resting:
        rank_zero_info(
            f"MixedPrecisionQuantization: {len(resting)} quantized layers are frozen or in no optimizer and stay as "
            f"they are: {', '.join(resting)}"
        )
    homes = [(each, _home(each.weights, trainer.optimizers)) for each in handle.learned()]
    for optimizer in trainer.optimizers:
        own = [(each, home[1]) for each, home in homes if home is not None and home[0] is optimizer]
        _add_scales(optimizer, own, scale_factor)
    if automatic:
        for config in trainer.lr_scheduler_configs:
            config.frequency = sys.maxsize  # never stepped


def set_learning_rates(trainer: L.Trainer, progress: float, schedule: Schedule) -> None:
    """Set the learning rates for a moment of fine-tuning, which schedulers tell when they are asked for the last ones.

    A group that joined meanwhile (gradual unfreezing) decays from the rate that it was given.

    Args:
        trainer: Its optimizers are prepared ones, or those restored from a checkpoint of such.
        progress: From 0 to 1.
        schedule: "cosine" decays to 0.
    """
    decay = (1 + cos(pi * min(progress, 1.0))) / 2 if schedule == "cosine" else 1.0
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            if "initial_lr" not in group:
                group["initial_lr"] = float(group.get("lr", 0.0))
            rate = decay * group["initial_lr"]
            if isinstance(group.get("lr"), Tensor):  # which compiled steps hold on to
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
    for config in trainer.lr_scheduler_configs:
        if hasattr(config.scheduler, "_last_lr"):
            config.scheduler._last_lr = [float(group["lr"]) for group in config.scheduler.optimizer.param_groups]


def given_optimizers(module: L.LightningModule, make: Callable[[L.LightningModule], Any] | None) -> None:
    """Let a module answer ``configure_optimizers`` by a function of the user's; None to let it answer itself again."""
    if make is None:
        module.__dict__.pop("configure_optimizers", None)
    else:
        module.__dict__["configure_optimizers"] = lambda: make(module)


def _home(weights: Sequence[nn.Parameter], optimizers: Sequence[Optimizer]) -> tuple[Optimizer, dict[str, Any]] | None:
    """Return the first optimizer that holds one of the weights, and the group in which it does."""
    wanted = {id(weight) for weight in weights}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(id(held) in wanted for held in group["params"]):
                return optimizer, group
    return None


def _add_scales(optimizer: Optimizer, own: Sequence[tuple[Learned, dict[str, Any]]], scale_factor: float) -> None:
    """Add a group with the scales that learn where an optimizer's weights do, each given with their group, if any."""
    scales = [each.parameter for each, _ in own]
    names = [f"learned_scales.{each.name}" for each, _ in own]
    like = own[0][1] if own else None
    if like is not None and isinstance(optimizer, LBFGS):  # which takes one group only
        like["params"] += scales
        if "param_names" in like:
            like["param_names"] += names
    elif like is not None:
        settings = {key: value for key, value in like.items() if key not in ("params", "name", "param_names")}
        rate = scale_factor * float(settings["initial_lr"])
        named = {"name": "learned_scales"} if "name" in like else {}
        given: list[Any] = list(zip(names, scales, strict=True)) if "param_names" in like else scales
        own_lr = torch.full_like(settings["lr"], rate) if isinstance(settings.get("lr"), Tensor) else rate
        optimizer.add_param_group(
            {**settings, **named, "params": given, "weight_decay": 0.0, "lr": own_lr, "initial_lr": rate}
        )


def _warn_of_copies(trainer: L.Trainer) -> None:
    """Say so if optimizers hold tensors that are no parameters of the module, such as copies kept by hand."""
    own = {id(parameter) for parameter in trainer.lightning_module.parameters()}
    held = [p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]
    if strange := sum(id(parameter) not in own for parameter in held):
        rank_zero_warn(
            f"{strange} of the {len(held)} tensors that the optimizers hold are no parameters of the module (copies "
            "kept by hand?); fine-tuning trains the module's own parameters only.",
            category=UserWarning,
        )
