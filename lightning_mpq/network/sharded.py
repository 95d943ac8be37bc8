"""Models whose parameters are cut into shards, one on each process: put together again, whole on each of them.

FSDP gathers the parameters of a module in hooks around its forward. What is packed has no gradient and is several times
smaller, so that each process takes the whole model, one parameter at a time, and lets hooks and shards go.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Tell whether some parameters, or modules, of a model are handled by FSDP, or are DTensors in any other way."""
    return bool(dist.is_available()) and (
        any(_is_wrapper(module) or _is_fully_sharded(module) for module in model.modules())
        or any(_is_distributed(parameter) for parameter in model.parameters())
    )


@torch.no_grad()
def gather_whole(model: nn.Module) -> nn.Module:
    """Give each process all parameters of a model, and take FSDP off it, in place; every process must call this.

    Args:
        model: A model under ``fully_shard`` (FSDP2) or one that `FullyShardedDataParallel` (FSDP1) wraps, or holds
            such modules.

    Returns:
        The model, or what was wrapped. Parameters are new objects, so that an optimizer of the old ones must be made
        anew.
    """
    for module in model.modules():
        if _is_fully_sharded(module):
            module.reshard()  # type: ignore[operator]  # the outermost stays whole after a pass without gradients
    whole = _gathered_by_summoning(model) if any(map(_is_wrapper, model.modules())) else _gathered_tensors(model)
    for module in list(model.modules()):
        if _is_fully_sharded(module):
            _take_off_hooks(module)
        for name, child in module._modules.items():
            if child is not None and _is_wrapper(child):
                module._modules[name] = child.module  # type: ignore[assignment]
    made: dict[int, nn.Parameter] = {}
    for module, name, key, value, needs_gradient in whole:
        parameter = made.setdefault(key, nn.Parameter(value, requires_grad=needs_gradient))
        module.__dict__.pop(name, None)  # where FSDP keeps a view instead of a parameter
        module._parameters[name] = parameter
    while _is_wrapper(model):
        model = model.module  # type: ignore[assignment]
    return model


_Whole = tuple[nn.Module, str, int, Tensor, bool]
"""Module, name of a parameter in it, what tells parameters that are shared, its values, whether it is trained."""


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield module, name, parameter


def _gathered_tensors(model: nn.Module) -> list[_Whole]:
    """Return the DTensors among the parameters of a model, put together in the same order on all processes."""
    known: dict[int, Tensor] = {}
    found = []
    for module, name, parameter in _parameters(model):
        if _is_distributed(parameter):
            if id(parameter) not in known:
                known[id(parameter)] = parameter.detach().full_tensor()  # type: ignore[attr-defined]
            found.append((module, name, id(parameter), known[id(parameter)], parameter.requires_grad))
    return found


def _gathered_by_summoning(model: nn.Module) -> list[_Whole]:
    """Return all parameters under wrappers of FSDP1, one wrapper after the other."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    known: dict[int, Tensor] = {}
    found: list[_Whole] = []
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        for module, name, parameter in _parameters(model):
            if name == "_flat_param":
                continue
            value = known.setdefault(id(parameter), parameter.detach().clone())
            found.append((module, name, id(parameter), value, parameter.requires_grad))
    return found


def _take_off_hooks(module: nn.Module) -> None:
    """Undo what ``fully_shard`` did to a module: its class, and the hooks that gather and cut its parameters."""
    state = module._get_fsdp_state()  # type: ignore[operator]
    for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
        handle.remove()
    for group in getattr(state, "_fsdp_param_groups", ()):
        for handles in (
            group._module_to_pre_save_state_dict_hook_handle,
            group._module_to_pre_load_state_dict_hook_handle,
        ):
            for handle in handles.values():
                handle.remove()
        group.fsdp_params.clear()  # it lives as long as the module, and with it the shards
    for key in [key for key in module.__dict__ if "composable_api" in str(key)]:
        del module.__dict__[key]  # holds process groups, which cannot be copied
    module.__class__ = next(kind for kind in type(module).__bases__ if kind.__name__ != "FSDPModule")


def _is_wrapper(module: nn.Module) -> bool:
    """Tell whether a module is the wrapper of FSDP1, without loading it."""
    return any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__)


def _is_fully_sharded(module: nn.Module) -> bool:
    """Tell whether ``fully_shard`` was called on a module, without loading FSDP2."""
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def _is_distributed(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor") and hasattr(tensor, "device_mesh")
