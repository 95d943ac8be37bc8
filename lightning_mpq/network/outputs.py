"""Which tensor of a model's outputs is meant, where a model returns several by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

KNOWN = ("logits", "last_hidden_state")
"""Names that are taken, the first that is there: predictions before what a head would read."""


class NamedOutputs(NamedTuple):
    """Outputs of a model.

    Attributes:
        value: The tensor; whatever the model returned if none was found.
        name: Its name; None where the model returned it bare.
    """

    value: Any
    name: str | None = None

    @classmethod
    def of(cls, outputs: Any) -> NamedOutputs:
        """Find the tensor in a mapping, or in an object with attributes, such as a ``ModelOutput`` of transformers.

        Example:
            >>> import torch
            >>> NamedOutputs.of({"loss": torch.zeros(()), "logits": torch.ones(1, 2)})
            NamedOutputs(value=tensor([[1., 1.]]), name='logits')
        """
        if isinstance(outputs, Tensor):
            return cls(outputs)
        for name in KNOWN:
            found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
            if isinstance(found, Tensor):
                return cls(found, name)
        return cls(outputs)
