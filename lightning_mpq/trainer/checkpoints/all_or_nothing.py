"""Either all of a checkpoint gets into a module, or the module is left as it was.

PyTorch and Lightning load tensor by tensor and complain at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...errors import CorruptModelError
from ...finetune.resume import pack_finetuned
from ...modules import empty_packed_model, packed_layers, restore_layers
from ...policy import BitPolicy
from ...tools.clean_up import after_errors, afterwards


@contextmanager
def empty_layers(module: nn.Module, policy: BitPolicy | None) -> Iterator[None]:
    """Replace layers by the empty packed ones of a policy, if they are not there yet; an error takes them back."""
    floats: dict[str, nn.Module] = {}
    with after_errors(lambda: restore_layers(module, floats)):
        if policy is not None and not packed_layers(module):
            try:
                floats = empty_packed_model(module, policy)
            except (TypeError, ValueError) as error:
                raise CorruptModelError(f"The checkpoint does not fit {type(module).__name__}: {error}") from error
        yield


@contextmanager
def as_it_was_after_errors(module: nn.Module, *, always: bool = False) -> Iterator[None]:
    """Give a module its tensors back if the block raises, or always; one on the meta device has none."""
    state = module.state_dict()
    before = {
        name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value) for name, value in state.items()
    }
    kept = not any(value.is_meta for value in before.values() if isinstance(value, Tensor))

    def restore() -> None:
        if kept:
            module.load_state_dict(before)

    with (afterwards if always else after_errors)(restore):
        yield


def try_state(module: nn.Module, state: Mapping[str, Any], finetuned: Mapping[str, Any] | None) -> None:
    """Load a state and pack what was fine-tuned, and take both back.

    Raises:
        CorruptModelError: If they do not fit.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if any(is_lazy(value) or value.is_meta for value in tensors):
        return  # nothing there that could be half loaded
    with as_it_was_after_errors(module, always=True):
        try:
            module.load_state_dict(state, strict=bool(getattr(module, "strict_loading", True)))
            if finetuned is not None:
                restore_layers(module, pack_finetuned(module, finetuned))
        except Exception as error:  # which one, depends on what is wrong in it
            raise CorruptModelError(
                f"The checkpoint does not fit {type(module).__name__}, which is left as it was: {error}"
            ) from error
