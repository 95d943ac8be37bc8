"""The data that a model is measured on, and how it is called on it: one record for all steps, and the one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from torch import Tensor, nn

from ..tools.checks import shown
from ..tools.distributed import errors_shared, gather, refuse_empty_ranks
from ..tools.progress import Progress
from .batches import batch_weight, describe_batch, to_device
from .forward import ForwardFn, LossFn, device_of, forward_batch
from .lazy import refuse_uninitialized
from .likelihood import Likelihood, check_likelihood
from .outputs import NamedOutputs


@dataclass(frozen=True)
class Calibration:
    """A model with its calibration batches, and with what is known of how to call it.

    Every verb that takes ``batches`` takes such a record in their place.

    Attributes:
        model: The model.
        batches: Calibration batches: this process's own, where there are several processes. Those without a sample are
            passed over.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch, or on the first item of
            a tuple or list; a mapping goes to the arguments of its names. Of several outputs by name ``logits`` are
            taken, or else ``last_hidden_state``.
        loss_fn: ``(model, batch) -> scalar``, the task loss; by default that of the model's ``training_step``.
        likelihood: What the outputs mean; None to guess.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 1)
        >>> calibration = Calibration(net, [torch.ones(3, 2), torch.ones(0, 2)])
        >>> calibration.samples, calibration.forward(torch.ones(4, 2)).shape
        (3, torch.Size([4, 1]))
    """

    model: nn.Module = field(repr=False)
    batches: Iterable[Any] = field(repr=False)
    forward_fn: ForwardFn | None = None
    loss_fn: LossFn | None = None
    likelihood: Likelihood | None = None

    def __post_init__(self) -> None:
        """Refuse weights that are not there yet, or cannot be differentiated or changed, and what is no likelihood."""
        check_likelihood(self.likelihood)
        refuse_uninitialized(self.model)
        if isinstance(self.batches, Tensor):  # whose rows would be taken for batches
            raise TypeError(
                f"batches must be a list or a loader of batches, got {describe_batch(self.batches)}: give [tensor], or "
                "tensor.split(32)."
            )
        if not isinstance(self.batches, Iterable) and not hasattr(self.batches, "__getitem__"):
            raise TypeError(f"batches must be a list or a loader of batches, got {shown(self.batches)}.")
        made = [*self.model.named_parameters(), *self.model.named_buffers()]
        if name := next((name for name, tensor in made if tensor.is_inference()), None):
            raise ValueError(
                f"{name!r} of {type(self.model).__name__} was made under torch.inference_mode(), so that nothing can "
                "be differentiated by it. Build or load the model outside of it, or pass copy.deepcopy(model), made "
                "outside of it."
            )

    @classmethod
    def of(cls, model: nn.Module, batches: Iterable[Any] | Calibration, **known: Any) -> Calibration:
        """Return the record of a model and its batches, however they were given.

        Args:
            model: The model.
            batches: Batches, or a record, which then holds for this model.
            known: Fields of the record; None for what is not said.
        """
        if not isinstance(batches, Calibration):
            return cls(model, batches, **known)
        return replace(batches, model=model, **{name: value for name, value in known.items() if value is not None})

    def on(self, model: nn.Module) -> Calibration:
        """Return the same for another model, such as a copy."""
        return replace(self, model=model)

    def first(self, count: int | None) -> Calibration:
        """Return the same with this process's first batches only; with all for None."""
        return replace(self, batches=list(islice(self.filled(), count)))

    def listed(self, purpose: str) -> Calibration:
        """Return the same with batches that can be gone through again, none of them empty.

        Raises:
            ValueError: If there is none, or another process has none.
        """
        batches = list(self.filled())
        _refuse_none(len(batches), purpose)
        return replace(self, batches=batches)

    def filled(self) -> Iterator[Any]:
        """Yield the batches that hold samples."""
        return (batch for batch in self.batches if batch_weight(batch))

    def forward(self, batch: Any, number: int = 1) -> Any:
        """Return the model's outputs on one batch.

        Args:
            batch: The batch.
            number: Which one it is, from 1, for messages.

        Raises:
            TypeError: If the model does not take it.
        """
        return self.named_outputs(batch, number).value

    def named_outputs(self, batch: Any, number: int = 1) -> NamedOutputs:
        """Return the same with the name under which the model returns it."""
        return NamedOutputs.of(forward_batch(self.model, batch, self.forward_fn, number))

    def each(self, use: Callable[[int, Any], object], purpose: str, progress: Progress | None = None) -> int:
        """Go once through the batches, on the model's device.

        Where torch.distributed is in use, every process goes through its own, and what one raises, all raise.

        Args:
            use: Called with the number of a batch, from 1, and the batch.
            purpose: What it is for, such as "rounding", for messages.
            progress: Called with the fraction done (0 if the number of batches is unknown) and a message.

        Returns:
            How many batches there were.

        Raises:
            ValueError: If there was none.
        """
        total = len(self.batches) if isinstance(self.batches, Sized) else None
        count = 0
        with errors_shared():
            for count, batch in enumerate(self.filled(), start=1):
                use(count, to_device(batch, device_of(self.model)))
                if progress is not None:
                    progress(count / total if total else 0.0, f"{purpose}: {count} batches")
        _refuse_none(count, purpose)
        return count

    def run(self, purpose: str, progress: Progress | None = None) -> int:
        """Let every batch pass through the model; what is of interest is what hooks see. See `each`."""
        return self.each(lambda number, batch: self.forward(batch, number), purpose, progress)

    @property
    def samples(self) -> int:
        """How many samples the batches of all processes hold; all must ask."""
        return sum(gather(sum(map(batch_weight, self.filled()))))


def _refuse_none(count: int, purpose: str) -> None:
    refuse_empty_ranks(gather(count))
    if not count:
        raise ValueError(f"{purpose[0].upper()}{purpose[1:]} needs at least one calibration batch, got none.")
