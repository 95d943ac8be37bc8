"""Which batches a job calibrates on: the user's own for that purpose, or those of the training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any

import lightning as L
from lightning.pytorch.trainer.connectors.data_connector import _DataHookSelector
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from ..network.batches import batch_weight
from ..tools.attributes import shadowed
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
    return _drawn(trainer, module, getattr(trainer, "datamodule", None), count, seed)


def batches_outside_of_fit(
    trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None, count: int, seed: int
) -> list[Any]:
    """Return calibration batches as the module would be given them in a fit of this Trainer.

    Args:
        trainer: Need not know module and datamodule.
        module: The module.
        datamodule: The data, set up; None for the module's own loaders.
        count: How many batches.
        seed: Of what is drawn for them.
    """
    with _as_in_a_fit(trainer, module, datamodule):
        return _drawn(trainer, module, datamodule, count, seed)


def _drawn(
    trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None, count: int, seed: int
) -> list[Any]:
    with own_draws((), seed):
        loader = calibration_loader(trainer, module, datamodule)
    with own_draws(loader, seed):
        return share_of_batches(loader, count, partial(as_given, trainer, module))


def as_given(trainer: L.Trainer, module: L.LightningModule, batch: Any) -> Any:
    """Return a batch of a loader as Lightning gives it to the module: converted, through all three hooks, and moved."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


@contextmanager
def _as_in_a_fit(
    trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None
) -> Iterator[None]:
    """Let Trainer, module and datamodule know each other for a while, as they do while the Trainer trains them.

    Hooks ask for the Trainer and for its stage; the datamodule's own come before those of the module.
    """
    with ExitStack() as stack:
        stack.enter_context(shadowed(module, _trainer=trainer))
        if datamodule is not None:
            stack.enter_context(shadowed(datamodule, trainer=trainer))
        stack.enter_context(shadowed(trainer, datamodule=datamodule))
        stack.enter_context(shadowed(trainer.strategy, _lightning_module=module))
        selector = _DataHookSelector(module, datamodule)
        stack.enter_context(shadowed(trainer._data_connector, _datahook_selector=selector))
        stack.enter_context(shadowed(trainer.state, fn=TrainerFn.FITTING, stage=RunningStage.TRAINING))
        yield


def calibration_loader(
    trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None
) -> Iterable[Any]:
    """Return the loader of calibration batches: the user's own for that purpose, or that of the training.

    Raises:
        ValueError: If there is none, or training batches come from several loaders.
    """
    if (own := own_calibration_loader(datamodule, module)) is not None:
        return own()
    source = datamodule if datamodule is not None else module
    if trainer.training and trainer.train_dataloader is not None:
        loader = apart(trainer.train_dataloader)
    elif is_overridden("train_dataloader", source):
        loader = source.train_dataloader()
    else:  # to call it raises an error of Lightning's, which names no way out
        raise ValueError(
            f"Calibration needs training batches, and {type(source).__name__} has no train_dataloader. Define it, or "
            "calibration_dataloader(), on the datamodule or the module."
        )
    if loader is None or isinstance(loader, (dict, list, tuple)):
        raise ValueError(
            "Calibration needs one loader of training batches, and train_dataloader gives "
            f"{type(loader).__name__}. Define calibration_dataloader() on the datamodule or the module."
        )
    return loader


def apart(loader: Any) -> Any:
    """Return a loader of the same data that shares no iterator with it, as far as that can be.

    A loader with persistent workers has one iterator, and so has a loader, or a streamed dataset, that iterates itself:
    to begin anew on it would take batches away from whoever is in the middle of it.
    """
    own = copy.copy(loader) if isinstance(loader, DataLoader) else _restarted(loader)
    if isinstance(loader, DataLoader):
        own.__dict__.update(_iterator=None, dataset=_restarted(loader.dataset))
    return own


def _restarted(stream: Any) -> Any:
    """Return a copy of what is its own iterator, where there can be one; anything else as it is."""
    try:
        return copy.copy(stream) if hasattr(stream, "__next__") and not hasattr(stream, "__del__") else stream
    except TypeError:  # a generator, for one
        return stream


def own_calibration_loader(*sources: Any) -> Callable[[], Iterable[Any]] | None:
    """Return ``calibration_dataloader`` of the first of some datamodules and modules that has one, None if none has."""
    found = (getattr(source, "calibration_dataloader", None) for source in sources)
    return next((own for own in found if callable(own)), None)


def has_own_calibration(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Tell whether calibration batches may look different from those of the training."""
    return own_calibration_loader(getattr(trainer, "datamodule", None), module) is not None


def is_stream(loader: Any) -> bool:
    """Tell whether nobody knows that batches come again when a loader is gone through once more."""
    return not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset)


def share_of_batches(loader: Iterable[Any], count: int, given: Callable[[Any], Any] = lambda batch: batch) -> list[Any]:
    """Return this process's share of ``count`` batches in all, at least one each.

    A loader with a DistributedSampler (Lightning's own choice for training data under DDP) gives every process batches
    of its own. Any other, such as the user's own for calibration, may give the same to all, so that every process takes
    each ``world_size``-th: if it does not shuffle, they have together those that one process would take.

    Args:
        loader: Yields batches; those without a sample are passed over.
        count: How many to take, all processes together.
        given: Batch of the loader to what the module is given.
    """
    filled = (batch for batch in loader if batch is not None and batch_weight(batch))
    if world_size() == 1:
        return _taken(filled, range(count), given)
    own = range(rank(), max(count, world_size()), world_size())
    with errors_shared():
        return _taken(filled, range(len(own)) if _divided(loader) else own, given)


def _taken(batches: Iterable[Any], wanted: range, given: Callable[[Any], Any]) -> list[Any]:
    taken = map(given, islice(batches, wanted.start, wanted.stop, wanted.step))
    return [batch for batch in taken if batch is not None]


def _divided(loader: Iterable[Any]) -> bool:
    """Tell whether a loader gives each process its own part of the data."""
    inner = [getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    return any(isinstance(sampler, DistributedSampler) for sampler in inner)
