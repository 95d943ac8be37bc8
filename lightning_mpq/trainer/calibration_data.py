"""Which batches a job calibrates on: the user's own for that purpose, or those of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import lightning as L
from torch.utils.data.distributed import DistributedSampler

from ..tools.distributed import errors_shared, rank, world_size
from .own_draws import own_draws


def batches_in_fit(trainer: L.Trainer, module: L.LightningModule, count: int, seed: int) -> list[Any]:
    """Return this process's share of the calibration batches, converted and moved as training does.

    Args:
        trainer: In its fit.
        module: What it trains.
        count: How many batches, all processes together.
        seed: Of what is drawn for them, which has no part in the training.
    """
    with own_draws((), seed):
        loader = calibration_loader(trainer, module, getattr(trainer, "datamodule", None))
    convert, move = trainer.precision_plugin.convert_input, trainer.strategy.batch_to_device
    with own_draws(loader, seed):
        return [move(convert(batch)) for batch in share_of_batches(loader, count)]


def calibration_loader(
    trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None
) -> Iterable[Any]:
    """Return the loader of calibration batches: the user's own for that purpose, or that of the training.

    Raises:
        ValueError: If there is none, or training batches come from several loaders.
    """
    if (own := own_calibration_loader(datamodule, module)) is not None:
        return own()
    in_fit = trainer.training and trainer.train_dataloader is not None
    source = datamodule if datamodule is not None else module
    loader = trainer.train_dataloader if in_fit else source.train_dataloader()
    if loader is None or isinstance(loader, (dict, list, tuple)):
        raise ValueError(
            "Calibration needs one loader of training batches, and train_dataloader gives "
            f"{type(loader).__name__}. Define calibration_dataloader() on the datamodule or the module."
        )
    return loader


def own_calibration_loader(*sources: Any) -> Callable[[], Iterable[Any]] | None:
    """Return ``calibration_dataloader`` of the first of some datamodules and modules that has one, None if none has."""
    found = (getattr(source, "calibration_dataloader", None) for source in sources)
    return next((own for own in found if callable(own)), None)


def has_own_calibration(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Tell whether calibration batches may look different from those of the training."""
    return own_calibration_loader(getattr(trainer, "datamodule", None), module) is not None


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
