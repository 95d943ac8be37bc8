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


def picked(outputs: Any, batch: Any) -> str:
    """Return an expression that picks a tensor from outputs, for messages.

    Example:
        >>> import torch
        >>> picked({"loss": torch.zeros(()), "start_logits": torch.ones(1, 2)}, {"input_ids": torch.ones(1, 2)})
        "model(**batch)['start_logits']"
        >>> picked((torch.ones(1, 2), "more"), torch.ones(1, 3))
        'model(batch)[0]'
    """
    call = "model(**batch)" if isinstance(batch, Mapping) else "model(batch)"
    items = (
        outputs.items() if isinstance(outputs, Mapping) else enumerate(outputs) if isinstance(outputs, tuple) else ()
    )
    fitting = [name for name, value in items if isinstance(value, Tensor) and value.is_floating_point() and value.dim()]
    return f"{call}[{fitting[0] if fitting else 'scores'!r}]"
