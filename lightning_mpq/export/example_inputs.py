"""What ``forward`` takes: tensors by position, by name, or both, and the same in other sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..network.batches import describe_batch, inputs_of, to_device
from ..network.forward import device_of, named_arguments

Examples = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""How a user gives them: one tensor, several by position, or several by name."""
_SHORTEST = 3
"""Tokens below which no shorter sequence can be tried that is longer than one."""


@dataclass(frozen=True)
class ExampleInputs:
    """Arguments of a model's ``forward``.

    Attributes:
        args: Those by position.
        kwargs: Those by name.
    """

    args: tuple[Tensor, ...] = ()
    kwargs: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, examples: Examples | ExampleInputs) -> ExampleInputs:
        """Read what a user gave.

        Raises:
            TypeError: If it is anything but tensors.
        """
        if isinstance(examples, cls):
            return examples
        if isinstance(examples, Mapping):
            found = cls(kwargs=dict(examples))
        elif isinstance(examples, (Tensor, tuple, list)):
            found = cls((examples,) if isinstance(examples, Tensor) else tuple(examples))
        else:
            found = cls()
        if not found.tensors or not all(isinstance(value, Tensor) for value in found.tensors):
            raise TypeError(
                f"example_inputs must be a tensor, several, or a mapping from arguments of forward to tensors; got "
                f"{describe_batch(examples)}."
            )
        return found

    @classmethod
    def of_batch(cls, model: nn.Module, batch: Any) -> ExampleInputs:
        """Return what ``forward`` gets of a calibration batch; see `forward_batch`.

        Raises:
            TypeError: If that is anything but tensors.
        """
        inputs = inputs_of(batch)
        if isinstance(inputs, Mapping):
            inputs = {key: v for key, v in named_arguments(model, inputs).items() if isinstance(v, Tensor)}
        return cls.of(to_device(inputs, device_of(model)))

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, those by position first."""
        return [*self.args, *self.kwargs.values()]

    def call(self, model: nn.Module) -> Any:
        """Return a model's outputs.

        Raises:
            TypeError: If its ``forward`` does not take them.
        """
        own = self.map(torch.clone)  # which forward may change, and a runtime is given too
        try:
            return model(*own.args, **own.kwargs)
        except (torch.OutOfMemoryError, NonFiniteError):
            raise
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            given = [describe_batch(value) for value in self.args]
            given += [f"{name}: {describe_batch(value)}" for name, value in self.kwargs.items()]
            raise TypeError(
                f"{type(model).__name__}.forward does not take the example inputs ({', '.join(given)}): {error}. Give "
                "what it is called on: a tensor, several, or a mapping from its arguments to tensors."
            ) from error

    def arrays(self, names: Sequence[str]) -> dict[str, Any]:
        """Return them as arrays by the names of a graph's inputs; what the graph does not ask for is left out."""
        by_position = zip(names, self.args, strict=False)
        named = [*by_position, *((name, value) for name, value in self.kwargs.items() if name in names)]
        return {name: value.detach().cpu().numpy() for name, value in named}

    def map(self, function: Callable[[Tensor], Any]) -> ExampleInputs:
        """Apply a function to each."""
        return ExampleInputs(tuple(map(function, self.args)), {key: function(v) for key, v in self.kwargs.items()})

    @property
    def samples(self) -> int | None:
        """Return their common first dimension, None if there is none."""
        sizes = {len(value) if value.dim() else 0 for value in self.tensors}
        return sizes.pop() if len(sizes) == 1 and 0 not in sizes else None

    @property
    def length(self) -> int | None:
        """Return how many tokens the integer matrices among arguments by name have in common, None if there are none.

        A tensor by position may have as many columns as a table has places.
        """
        sizes = {value.shape[1] for value in self.kwargs.values() if value.dim() == 2 and not value.is_floating_point()}
        return sizes.pop() if len(sizes) == 1 else None

    def _has_tokens(self, value: Tensor) -> bool:
        """Tell whether the second dimension of a tensor is that length: a mask beside tokens may be in float."""
        return value.dim() == 2 and (not value.is_floating_point() or value.shape[1] == self.length)

    def in_two_sizes(self, *, dynamic_length: bool) -> list[ExampleInputs]:
        """Return inputs in two batch sizes of at least two, as export takes a size of one for a constant.

        Args:
            dynamic_length: Whether the second has shorter sequences too.

        Raises:
            ValueError: If the inputs have no first dimension in common, or too few tokens to try fewer.
        """
        if self.samples is None:
            shapes = [list(value.shape) for value in self.tensors]
            raise ValueError(
                f"A dynamic batch is the first dimension of all inputs, but these have the shapes {shapes}. "
                "Pass dynamic_batch=False."
            )
        first = self.map(lambda value: torch.cat([value, value])) if self.samples == 1 else self
        second = first.map(lambda value: torch.cat([value, value[:1]]))
        if dynamic_length:
            if self.length is None or self.length < _SHORTEST:
                raise ValueError(
                    f"A dynamic length needs example inputs of at least {_SHORTEST} tokens, to try fewer; got "
                    f"{self.length}. Give longer ones, or pass dynamic_length=False."
                )
            second = second.map(lambda value: value[:, :-1] if self._has_tokens(value) else value)
        return [first, second]

    def dynamic_shapes(self, *, dynamic_length: bool) -> Any:
        """Return which dimensions may have any size, as ``torch.export`` takes it."""
        batch, length = torch.export.Dim("batch"), torch.export.Dim("length")

        def dimensions(value: Tensor) -> dict[int, Any]:
            return {0: batch, 1: length} if dynamic_length and self._has_tokens(value) else {0: batch}

        shapes = self.map(dimensions)
        return dict(shapes.kwargs) if not self.args else (*shapes.args, *shapes.kwargs.values())
