"""Which of Lightning's strategies can be worked with, and which batches are whose where there are several processes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.utils.data.distributed import DistributedSampler

from ..tools.distributed import errors_shared, rank, world_size

_AFTERWARDS = (
    "train as you do without this callback, and call its quantize_trained with a Trainer on one device afterwards, on "
    "a module that was loaded from the checkpoint"
)


def refuse_unsupported(strategy: Strategy) -> None:
    """Refuse a strategy that the end of a fit cannot be quantized under, and say what to do.

    Raises:
        ValueError: If the model is cut into pieces, or its processes end with the fit.
    """
    name = type(strategy).__name__
    if isinstance(strategy, SingleDeviceStrategy):
        return
    if not isinstance(strategy, DDPStrategy):
        raise ValueError(
            f"MixedPrecisionQuantization works on one device or under DDP, where every process holds the whole model, "
            f"and got {name}. Use strategy='ddp', or {_AFTERWARDS}."
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        # The main process gets back nothing but a state dict, and loads what fits of it into its float model.
        raise ValueError(
            f"MixedPrecisionQuantization packs the model in the processes that train it, and those of "
            f"{strategy._start_method!r} end with the fit and leave the packed layers behind. Start a script with "
            f"strategy='ddp' (or by torchrun), or {_AFTERWARDS}."
        )


def refuse_several_processes(strategy: Strategy) -> None:
    """Refuse a strategy of several processes for what is done outside of a Trainer's fit.

    Raises:
        ValueError: If the strategy is not one of a single device.
    """
    if not isinstance(strategy, SingleDeviceStrategy):
        raise ValueError(
            f"quantize_trained works on one device, CPU or GPU, and got the strategy {type(strategy).__name__}, whose "
            "processes live within a fit only. Pass a Trainer(devices=1); or let the callback quantize at the end of "
            "a fit with strategy='ddp'."
        )


def share_of_batches(loader: Iterable[Any], count: int) -> list[Any]:
    """Return this process's share of ``count`` batches in all, at least one each.

    A loader with a DistributedSampler (Lightning's own choice for training data under DDP) gives every process batches
    of its own. Any other, such as the user's own for calibration, may give the same to all, so that every process takes
    each ``world_size``-th: if it does not shuffle, they have together those that one process would take.

    Args:
        loader: Yields batches.
        count: How many to take, all processes together.
    """
    if world_size() == 1:
        return list(islice(loader, count))
    own = range(rank(), max(count, world_size()), world_size())
    with errors_shared():
        if _divided(loader):
            return list(islice(loader, len(own)))
        return list(islice(loader, own.start, own.stop, own.step))


def _divided(loader: Iterable[Any]) -> bool:
    """Tell whether a loader gives each process its own part of the data."""
    inner = [getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    return any(isinstance(sampler, DistributedSampler) for sampler in inner)
