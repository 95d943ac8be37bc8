"""Self-distillation: the divergence from the float model's outputs, added to whatever loss the user computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..network.batches import map_tensors, tensors_of
from ..network.guessed_likelihood import guess_likelihood
from ..network.hooks import hooked
from ..network.likelihood import Likelihood
from ..tools.checks import shown
from .teacher import Teacher


class DistillationLoss:
    """Weight times the mean divergence KL(p_float || p_quantized) of a module's outputs.

    With a temperature T logits are divided by T and the divergence is multiplied by T^2, which keeps the size of its
    gradient (Hinton et al. 2015, arXiv:1503.02531, section 2). The mean is over everything that is predicted
    (`Likelihood.counted`): positions of a categorical distribution that count, elements of the outputs for others.

    Example::

        distillation = DistillationLoss(network, Teacher(network), weight=1.0)
        fake_quantize(network, policy)
        with distillation.capture():
            loss = training_step(batch)        # calls the network
        (loss + distillation.loss(batch)).backward()
    """

    def __init__(
        self,
        module: nn.Module,
        teacher: Teacher,
        *,
        weight: float = 1.0,
        temperature: float = 1.0,
        likelihood: Likelihood | Literal["auto"] = "auto",
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        """Prepare; the module is not changed.

        Args:
            module: The student: the module whose outputs are the predictions, called in the training step.
            teacher: Its float copy.
            weight: Factor on the divergence.
            temperature: See above.
            likelihood: What the outputs mean; "auto" guesses at the first batch and says so.
            select: Outputs of the module to predictions; by default the tensor itself, the attribute or key
                ``logits``, or the first item of a tuple.

        Raises:
            ValueError: If weight or temperature is out of range.
        """
        if not weight >= 0:
            raise ValueError(f"The weight of the distillation loss must be 0 or more, got {shown(weight)}.")
        if not temperature > 0:
            raise ValueError(f"The temperature must be positive, got {shown(temperature)}.")
        self.module = module
        self.teacher = teacher
        self.weight = weight
        self.temperature = temperature
        self.likelihood = likelihood
        self.select = select or predictions_of
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []
        self._before: list[tuple[list[int], Any]] = []

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Keep the inputs and outputs of the module's calls inside of a ``with`` block, for `loss`."""
        self._calls.clear()
        self._before.clear()
        with hooked([(self.module, self._keep)], [(self.module, self._note)], with_kwargs=True):
            yield

    def loss(self, batch: Any = None) -> Tensor:
        """Return weight times the mean divergence over the calls captured last, and forget them.

        Args:
            batch: The batch, whose targets tell which positions count and what the outputs mean.

        Raises:
            RuntimeError: If the module was not called.
        """
        calls, self._calls = self._calls, []
        if not calls:
            raise RuntimeError(
                f"The training step did not call the {type(self.module).__name__} whose outputs are distilled. "
                "Name the module that returns the predictions."
            )
        losses = [self._divergence(args, options, outputs, batch) for args, options, outputs in calls]
        return self.weight * torch.stack(losses).mean()

    def _note(self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            copies = map_tensors(lambda tensor: tensor.detach().clone(), (args, options))
            self._before.append((_versions(args, options), copies))

    def _keep(self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], outputs: Any) -> None:
        if torch.is_grad_enabled():
            before, copies = self._before.pop()
            if before != _versions(args, options):  # by forward, and the teacher's does so too
                args, options = copies
            self._calls.append((args, options, self.select(outputs)))

    def _divergence(self, args: tuple[Any, ...], options: dict[str, Any], student: Tensor, batch: Any) -> Tensor:
        teacher = self.select(self.teacher(*args, **options))
        student = student.to(torch.promote_types(student.dtype, torch.float32))
        if self.likelihood == "auto":
            self.likelihood = guess_likelihood(teacher, batch)
        heat = self.temperature
        each = self.likelihood.divergence(teacher / heat, student / heat, batch)
        return heat**2 * each.sum() / self.likelihood.counted(student.detach(), batch).clamp(min=1)


def _versions(*inputs: Any) -> list[int]:
    """Return how often each tensor was changed in place."""
    return [tensor._version for tensor in tensors_of(inputs)]


def predictions_of(outputs: Any) -> Tensor:
    """Return the predictions in a module's outputs: the tensor, ``logits``, or the first item of a tuple or list.

    Raises:
        TypeError: If there is none of these.
    """
    found = outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        found = outputs["logits"]
    elif isinstance(getattr(outputs, "logits", None), Tensor):
        found = outputs.logits
    elif isinstance(outputs, (tuple, list)) and outputs:
        found = outputs[0]
    if not isinstance(found, Tensor):
        raise TypeError(
            f"Expected predictions as a tensor, a tuple that begins with one, or 'logits', got {type(found).__name__}. "
            "Say with select=lambda outputs: ... where they are."
        )
    return found


def with_extra_loss(result: Any, extra: Tensor) -> Any:
    """Add a loss to what a training step returned: a tensor, a mapping with ``loss``, or None to skip the step."""
    if result is None:
        return None
    if isinstance(result, Mapping):
        return {**result, "loss": result["loss"] + extra}
    return result + extra
