"""The model and its loss on batches, with errors that say what to pass and where a value is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..tools.attributes import shadowed
from ..tools.finite import all_finite
from ..tools.warning import warn
from .batches import describe_batch, tensors_of, to_device
from .calibration import Calibration
from .forward import device_of
from .hooks import hooked
from .likelihood import Categorical
from .outputs import picked
from .placement import refuse_spread


class SkippedBatchError(TypeError):
    """A ``training_step`` has returned None for a batch, by which Lightning skips it."""


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss of the model's ``training_step``, whose logging calls go nowhere for that time.

    Raises:
        TypeError: If the model has no training_step, or it returns no loss.
        SkippedBatchError: If it returns None.
    """
    step = getattr(model, "training_step", None)
    if not callable(step):
        raise TypeError(
            f"loss='task' needs a loss, and {type(model).__name__} has no training_step. Pass "
            "loss_fn=lambda model, batch: ... that returns the mean loss over the batch as a scalar tensor."
        )
    with shadowed(model, log=_ignore, log_dict=_ignore):
        result = step(batch, 0) if len(signature(step).parameters) > 1 else step(batch)
    if result is None:
        raise SkippedBatchError(
            f"{type(model).__name__}.training_step returned None, which skips the batch. Give other calibration "
            "batches (calibration_dataloader), or loss_fn=lambda model, batch: ... that returns the mean loss of one."
        )
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"{type(model).__name__}.training_step must return the loss as a tensor or a dict with 'loss', got "
            f"{describe_batch(result)}. Pass loss_fn=lambda model, batch: ... that returns a scalar tensor."
        )
    return loss


def not_differentiable(what: str) -> ValueError:
    """Return the error for outputs or a loss that carry no gradient."""
    return ValueError(
        f"The {what} not depend on the weight of any quantized layer in a way that can be differentiated. forward_fn "
        "and loss_fn must not detach, nor run under torch.no_grad(), and forward must use the layers' own weights. "
        "estimator='secant' needs no derivatives."
    )


def _ignore(*args: object, **kwargs: object) -> None:
    """Stand in for ``log`` and ``log_dict``, which work only inside of a Trainer's loops."""


class Evaluator:
    """Runs the model and its loss on batches, and refuses what cannot be measured with a sentence.

    Attributes:
        model: The model.
        batch_number: Which batch is being measured, for messages; from 1.
        output_name: Under which name the model returned its outputs last; None if bare.
    """

    def __init__(self, calibration: Calibration) -> None:
        """Keep how the model is called, and take the loss of its ``training_step`` where no other is given."""
        self.model = calibration.model
        self.batch_number = 1
        self.output_name: str | None = None
        self._calibration = calibration
        self._loss = calibration.loss_fn or default_loss

    def outputs(self, batch: Any) -> Tensor:
        """Return the model's outputs, [N, ...], finite.

        Raises:
            TypeError: If the outputs are not one floating-point tensor with a sample in each row.
            ValueError: If they have a row for each position of each sample.
            NonFiniteError: If they are not finite; names the first module whose output is not.
        """
        outputs, name = self._calibration.named_outputs(batch, self.batch_number)
        if name == "last_hidden_state" and self.output_name is None:
            warn(
                f"{type(self.model).__name__} returns no 'logits'; its 'last_hidden_state' is measured. Pass "
                "forward_fn=lambda model, batch: ... that returns what is used of it, such as a pooled embedding."
            )
        self.output_name = name
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.dim() == 0:
            raise TypeError(
                "Expected the model's outputs as one floating-point tensor with the samples along dimension 0, got "
                f"{describe_batch(outputs)}. Pass forward_fn=lambda model, batch: ... that picks it, for instance "
                f"{picked(outputs, batch)}, or joins several (torch.cat); 'logits' and 'last_hidden_state' are found "
                "by themselves."
            )
        given = next((len(tensor) for tensor in tensors_of(batch) if tensor.dim()), len(outputs))
        of_classes = isinstance(self._calibration.likelihood, Categorical)
        if outputs.dim() == 1 and (len(outputs) != given or of_classes):
            raise ValueError(
                f"The outputs {list(outputs.shape)} have one dimension, which must be that of the samples, one number "
                f"each; batch {self.batch_number} is {describe_batch(batch)}. Give batches as a DataLoader makes them "
                "of samples, and return classes along a second dimension."
            )
        if (flattened := _flattened(outputs, batch)) is not None:
            raise ValueError(
                f"The outputs {list(outputs.shape)} have a row for each of the {flattened.numel()} positions of "
                f"{len(flattened)} samples; those of one sample belong together, and may act on each other. Return "
                f"the outputs from forward_fn as {[*flattened.shape, *outputs.shape[1:]]}, and for logits pass "
                "likelihood=Categorical(class_dim=-1)."
            )
        if not all_finite(outputs):
            raise self._non_finite("outputs of the model are", batch, partial(self._calibration.forward, batch))
        return outputs

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch, a finite scalar.

        Raises:
            TypeError: If it is not a scalar tensor.
            NonFiniteError: If it is not finite; names the first module whose output is not.
        """
        loss = self._loss(self.model, to_device(batch, device_of(self.model), copy=True))
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            raise TypeError(
                f"Expected the loss as a scalar floating-point tensor, got {describe_batch(loss)}. Return the mean "
                "over the samples from loss_fn."
            )
        if not all_finite(loss):
            raise self._non_finite("loss is", batch, partial(self._loss, self.model, batch))
        return loss.reshape(())

    def _non_finite(self, what: str, batch: Any, run: Callable[[], object]) -> NonFiniteError:
        """Find the first module whose output is not finite by one more forward pass, and name it."""
        culprits: list[str] = []

        def check(name: str, module: nn.Module, inputs: object, output: object) -> None:
            bad = [t for t in tensors_of(output) if t.is_floating_point() and not all_finite(t)]
            if bad and not culprits:
                culprits.append(name or type(module).__name__)

        named = [(module, partial(check, name)) for name, module in self.model.named_modules()]
        with torch.no_grad(), hooked(after=named):
            run()
        bad_input = any(t.is_floating_point() and not all_finite(t) for t in tensors_of(batch))
        where = f"first in the module {culprits[0]!r}" if culprits else "though every module's output is finite"
        cause = " The batch itself holds NaN or infinite values." if bad_input else ""
        return NonFiniteError(f"The {what} NaN or infinite in batch {self.batch_number}, {where}.{cause}")


def _flattened(outputs: Tensor, batch: Any) -> Tensor | None:
    """Return the tokens, mask or labels [N, positions, ...] of a batch of whose positions each has a row of outputs."""
    found = (t for t in tensors_of(batch) if t.dim() > 1 and not t.is_floating_point())
    return next((t for t in found if len(outputs) == t.numel() > len(t)), None)


def check_finite_parameters(model: nn.Module) -> None:
    """Refuse a model with a parameter that is not finite, and name it (a buffer may be: an attention mask).

    One whose parameters have no values, or lie on several devices, is refused too.
    """
    refuse_spread(model)
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not all_finite(tensor):
            module, _, own = name.rpartition(".")
            raise NonFiniteError(
                f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values of {own!r} in the module "
                f"{module or type(model).__name__!r} are NaN or infinite. Load weights from before the training "
                "diverged."
            )
