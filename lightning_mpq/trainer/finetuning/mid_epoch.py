"""A fit that goes on from a checkpoint in the midst of an epoch: with the batches that are left of it."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn


def batches_done(trainer: L.Trainer) -> int:
    """Return how many batches a checkpoint has trained on in an epoch that goes on; 0 if none is left of it."""
    loop = trainer.fit_loop.epoch_loop
    current = loop.batch_progress.current
    # One that was written after a batch, by a callback, counts that batch as processed and not yet as completed.
    done = current.completed + loop.restarted_on_train_batch_end
    return done if done < trainer.num_training_batches else 0


def is_counted(trainer: L.Trainer) -> bool:
    """Tell whether a checkpoint was written by a callback after the last batch, where Lightning counts the epoch."""
    loop = trainer.fit_loop.epoch_loop
    return loop.restarted_on_train_batch_end and loop.batch_progress.is_last_batch


def resumes_by_itself(trainer: L.Trainer) -> bool:
    """Tell whether Lightning restores the place in the data, or only the module knows it (``dataloader_iter``)."""
    loader: Any = trainer.fit_loop._combined_loader
    fetcher = trainer.fit_loop._data_fetcher
    return bool(loader._state_dicts()) or isinstance(fetcher, _DataLoaderIterDataFetcher)


def draw_order(trainer: L.Trainer) -> Any:
    """Begin anew with the batches of the present epoch, and return where Lightning takes them from."""
    loader: Any = trainer.fit_loop._combined_loader
    for each in loader.flattened:
        _set_sampler_epoch(each, trainer.current_epoch)
    return iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]


def skip_batches(trainer: L.Trainer, count: int) -> None:
    """Draw the order of the present epoch's batches, and pass over the first ones.

    Lightning itself would begin with the first batch of a new order, and end the epoch as if it had not.
    """
    fetcher = draw_order(trainer)
    for _ in range(count):
        next(fetcher)
    fetcher.fetched -= count  # which Lightning adds
    rank_zero_info(
        f"MixedPrecisionQuantization: epoch {trainer.current_epoch} goes on after the {count} batches that the "
        "checkpoint has trained on."
    )
    if count % trainer.accumulate_grad_batches:
        rank_zero_warn(
            f"The checkpoint was written between two optimizer steps, and the gradients accumulated over "
            f"{count % trainer.accumulate_grad_batches} batches are not in it. Save checkpoints after steps "
            "(every_n_train_steps) to go on as if nothing had happened.",
            category=UserWarning,
        )


def end_epoch(trainer: L.Trainer) -> None:
    """Let the next epoch begin, where a checkpoint was written after the last step of one, but before its end.

    Lightning would train that next epoch without its ``on_train_epoch_start``, or train the old one further.
    """
    loop, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if not is_counted(trainer):
        loop.epoch_progress.increment_processed()
        loop.epoch_progress.increment_completed()
        batches.batch_progress.reset_on_run()
        batches.scheduler_progress.reset_on_run()
        batches.automatic_optimization.optim_progress.reset_on_run()
        batches.val_loop.batch_progress.total.reset()
        batches.reset_restart_stage()
    elif trainer.enable_validation:
        rank_zero_warn(
            "The checkpoint was written after the last batch of an epoch, but before its validation, which is left "
            "out; what that would have drawn from random generators is not drawn. Checkpoints of whole epochs "
            "(every_n_epochs) have no such gap.",
            category=UserWarning,
        )
    loop.reset_restart_stage()
