"""A model seen as tensors with names: each parameter and persistent buffer once, with every place it stands in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Slot:
    """One parameter or buffer of a model.

    Attributes:
        value: The tensor that is there.
        places: Qualified name to (the dictionary of the module that holds it, its key there).
    """

    value: Tensor
    places: dict[str, tuple[dict[str, Tensor | None], str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The first of its names."""
        return next(iter(self.places))

    @property
    def keeps_memory(self) -> bool:
        """Whether other values can be written into the tensor."""
        return not self.value.is_meta and not self.value.is_inference()

    def portable(self) -> Tensor:
        """Return the tensor as a file wants it: dense, contiguous, on the CPU, in memory of its own.

        Raises:
            ValueError: If it has no values, or they are not dense.
        """
        value = self.value.detach()
        if value.is_meta or value.layout is not torch.strided:
            where = "on the meta device" if value.is_meta else f"in {value.layout} layout"
            raise ValueError(f"The tensor {self.name!r} is {where}; only dense tensors with values can be saved.")
        value = value.cpu().contiguous()
        alone = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if alone else value.clone()


def find_slots(model: nn.Module) -> list[Slot]:
    """Return every parameter and persistent buffer of a model once, in the order of its state dict.

    Args:
        model: Any module.

    Raises:
        ValueError: If a module keeps state that is not a tensor.
    """
    slots: dict[int, Slot] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(
                f"{prefix or 'The model'} ({type(module).__name__}) keeps state that is not a tensor "
                "(get_extra_state), which a safetensors file cannot hold."
            )
        for holder in (module._parameters, module._buffers):
            for key, value in holder.items():
                if value is not None and key not in module._non_persistent_buffers_set:
                    slot = slots.setdefault(id(value), Slot(value))
                    slot.places[f"{prefix}.{key}" if prefix else key] = (holder, key)
    return list(slots.values())


def fill_slots(filling: Iterable[tuple[Slot, Tensor]]) -> None:
    """Give each slot its tensor, of the same shape and type; if anything fails, all values are as before.

    A tensor that has memory keeps it (views, ties and optimizers go on working); one on the meta device, or one that
    was made under ``torch.inference_mode()`` and cannot be written to, is replaced.
    """
    filling = list(filling)
    exchanged: list[tuple[Tensor, Tensor]] = []
    try:
        for slot, value in filling:
            if slot.keeps_memory:
                _exchange(slot.value, value)
                exchanged.append((slot.value, value))
    except BaseException:
        for own, value in exchanged:
            _exchange(own, value)
        raise
    for slot, value in filling:
        if not slot.keeps_memory:
            new = value
            if isinstance(slot.value, nn.Parameter):
                new = nn.Parameter(value, requires_grad=slot.value.requires_grad)
            for holder, key in slot.places.values():
                holder[key] = new


@torch.no_grad()
def _exchange(own: Tensor, other: Tensor) -> None:
    """Exchange values, so that undoing needs no second copy of everything."""
    before = own.clone()
    own.copy_(other)
    other.copy_(before)
