"""Which of Lightning's strategies can be worked with, and how a model that one of them cuts is put together again."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_info

from ..network.sharded import gather_whole

_AFTERWARDS = (
    "train as you do without this callback, and call its quantize_trained with a Trainer on one device afterwards, on "
    "a module that was loaded from the checkpoint"
)


def refuse_unsupported(strategy: Strategy, finetunes: bool = False) -> None:
    """Refuse a strategy that the end of a fit cannot be quantized under, and say what to do.

    Args:
        strategy: The Trainer's.
        finetunes: Whether the quantized model is to be trained on.

    Raises:
        ValueError: If the model is cut into pieces that cannot be put together, or is and shall be fine-tuned, or if
            processes end with the fit.
    """
    name = type(strategy).__name__
    if isinstance(strategy, SingleDeviceStrategy):
        return
    if cuts_parameters(strategy):
        if finetunes:
            raise ValueError(
                f"MixedPrecisionQuantization fine-tunes whole weights, on one device or under DDP, and {name} cuts "
                f"them. Leave finetune_epochs and finetune_steps out, use strategy='ddp', or {_AFTERWARDS}."
            )
        if isinstance(strategy, ModelParallelStrategy) and strategy._tensor_parallel_size not in ("auto", 1):
            raise ValueError(
                "MixedPrecisionQuantization puts together what fully_shard cut, not what tensor parallelism did, and "
                f"got ModelParallelStrategy(tensor_parallel_size={strategy._tensor_parallel_size}). Pass "
                f"tensor_parallel_size=1 and data_parallel_size=..., or {_AFTERWARDS}."
            )
        return
    if not isinstance(strategy, DDPStrategy) or isinstance(strategy, DeepSpeedStrategy):  # which is one of DDP
        raise ValueError(
            f"MixedPrecisionQuantization works on one device, under DDP, or under FSDP where the whole model fits on "
            f"each device, and got {name}. Use strategy='ddp' or 'fsdp', or {_AFTERWARDS}."
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        # The main process gets back nothing but a state dict, and loads what fits of it into its float model.
        raise ValueError(
            f"MixedPrecisionQuantization packs the model in the processes that train it, and those of "
            f"{strategy._start_method!r} end with the fit and with them the packed layers. Start a script with "
            f"strategy='ddp' (or by torchrun), or {_AFTERWARDS}."
        )


def cuts_parameters(strategy: Strategy) -> bool:
    """Tell whether a strategy cuts parameters between processes, and lets them be put together again."""
    return isinstance(strategy, (FSDPStrategy, ModelParallelStrategy))


def make_whole(trainer: L.Trainer) -> None:
    """Give each process of FSDP the whole model, at the end of a fit; what is cut is freed, with its optimizers.

    Raises:
        ValueError: If tensors are cut in a way that cannot be undone.
    """
    strategy = trainer.strategy
    if not cuts_parameters(strategy):
        return
    refuse_unsupported(strategy)  # "auto" is a number by now
    rank_zero_info(f"MixedPrecisionQuantization: every process takes the whole model, which {_name(strategy)} had cut")
    assert strategy.model is not None
    strategy.model = gather_whole(strategy.model)
    if isinstance(strategy, ModelParallelStrategy):
        trainer.lightning_module._device_mesh = None  # for configure_model alone; models that have one cannot be copied
    strategy.optimizers, strategy.lr_scheduler_configs = [], []


def _name(strategy: Strategy) -> str:
    return type(strategy).__name__


def refuse_several_processes(strategy: Strategy) -> None:
    """Refuse a strategy of several processes for what is done outside of a Trainer's fit.

    Raises:
        ValueError: If the strategy is not one of a single device.
    """
    if not isinstance(strategy, SingleDeviceStrategy):
        raise ValueError(
            f"quantize_trained works on one device, CPU or GPU, and got the strategy {type(strategy).__name__}, whose "
            "processes live within a fit only. Pass a Trainer(devices=1); or let the callback quantize at the end of "
            "a fit with strategy='ddp' or 'fsdp'."
        )
