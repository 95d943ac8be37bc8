"""The float model as a teacher: its weights kept once, and a forward pass that leaves no trace."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..network.batches import map_tensors
from ..network.forward import device_of
from ..tools.checks import check_one_of
from ..tools.copying import copied

TeacherDtype = Literal["float32", "bfloat16", "float16"]


class Teacher:
    """A copy of a float module, in eval mode and without gradients.

    It shares nothing with the module: fine-tuning changes weights, biases and BatchNorm statistics, and a forward pass
    of the teacher must change nothing of the student's.

    Args:
        module: The float module whose outputs are to be kept, before fake quantization.
        dtype: Type in which weights (parameters of two or more dimensions, other than of recurrent layers) are kept;
            with a 16-bit one the teacher runs under autocast in that type. None keeps them as they are.

    Raises:
        ValueError: If the type is unknown, or the module cannot be copied.
    """

    def __init__(self, module: nn.Module, dtype: TeacherDtype | None = None) -> None:
        check_one_of("teacher_dtype", dtype, (None, "float32", "bfloat16", "float16"))
        self.dtype = None if dtype in (None, "float32") else getattr(torch, str(dtype))
        self.module = _copied(module).eval().requires_grad_(False)
        if self.dtype is not None:
            for part in self.module.modules():
                if isinstance(part, (nn.RNNBase, nn.RNNCellBase)):  # want weights and biases of one type
                    continue
                for parameter in part.parameters(recurse=False):
                    if parameter.dim() > 1 and parameter.is_floating_point():
                        parameter.data = parameter.data.to(self.dtype)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Return the float model's outputs, tensors in float32 or wider, drawing nothing from random states."""
        device = device_of(self.module)
        devices = [device] if device.type == "cuda" else []
        autocast = nullcontext() if self.dtype is None else torch.autocast(device.type, dtype=self.dtype)
        with torch.no_grad(), torch.random.fork_rng(devices=devices), autocast:
            outputs = self.module(*args, **options)
        return map_tensors(_widened, outputs)

    def to(self, device: torch.device) -> Teacher:
        """Move the teacher."""
        self.module.to(device)
        return self

    @property
    def bytes(self) -> int:
        """Bytes of everything that is kept."""
        tensors = {id(value): value for value in [*self.module.parameters(), *self.module.buffers()]}
        return sum(value.numel() * value.element_size() for value in tensors.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the float weights as they are kept."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the float weights from `state_dict`."""
        self.module.load_state_dict(state)


def _copied(module: nn.Module) -> nn.Module:
    """Copy a module with everything in it.

    Raises:
        ValueError: If it cannot be copied.
    """
    try:
        return copied(module)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"The float model must be copied to teach, and {type(module).__name__} cannot be: {error}. Distil from an "
            "inner network that can, or fine-tune without distillation."
        ) from error


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
