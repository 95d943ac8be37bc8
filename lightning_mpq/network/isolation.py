"""Measuring a model without leaving a trace: modes, flags, buffers, metrics and random states come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchmetrics import Metric

from ..tools.attributes import shadowed
from ..tools.clean_up import afterwards
from ..tools.process_wide import ProcessWide
from .caching import caching
from .experts import one_expert_at_a_time
from .modes import evaluating
from .random_states import RandomStates


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Measure ``model`` in eval mode as if nothing had happened before or afterwards.

    Inside, no parameter requires a gradient, autocast is off and everything runs eagerly with kernels that can
    be differentiated twice and in forward mode: the mathematical attention (fused kernels have no such
    derivatives), no fast path of MultiheadAttention and TransformerEncoderLayer, no fused recurrent layers, experts
    one after the other. Models of transformers keep no keys and values.

    Random numbers begin at the same place each time, so that a model that draws some is measured on the same ones.

    On leaving, by an error too: training modes, ``requires_grad`` flags, buffers, the states of torchmetrics, and
    the random states of Python, NumPy and torch (CPU, and the CUDA devices that the model lies on) are what
    they were, so that training goes on bit-identical. Of blocks that overlap in several threads the last one to end
    puts back what the process has one of.
    """
    stack = ExitStack()
    with afterwards(stack.close):
        stack.enter_context(_RANDOM_STATES())
        stack.enter_context(_random_states(model))
        stack.enter_context(_module_states(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in {"cpu"} | {parameter.device.type for parameter in model.parameters()}:
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_DIFFERENTIABLE())
        stack.enter_context(one_expert_at_a_time(model))
        stack.enter_context(caching(model, use_cache=False))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(_NO_FUSED_RNN())
        for module in model.modules():
            if module._compiled_call_impl is not None:  # by module.compile(): its code keeps weights, hooks and modes
                stack.enter_context(shadowed(module, _compiled_call_impl=None))
        yield


@contextmanager
def _random_states(model: nn.Module) -> Iterator[None]:
    before = RandomStates.now(model)
    with afterwards(before.set):
        RandomStates.seeded(model, 0).set()
        yield


@contextmanager
def _kept_random_states() -> Iterator[None]:
    with afterwards(RandomStates.now(nn.Identity()).set):  # those of devices are each block's own affair
        yield


@contextmanager
def _module_states(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode without gradients; afterwards restore modes, flags, buffers, metrics."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    metrics = {module: _metric_state(module) for module in model.modules() if isinstance(module, Metric)}

    def restore() -> None:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for buffer, value in buffers.items():
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for metric, state in metrics.items():
            metric.__dict__.update(state)

    with afterwards(restore):
        for parameter in flags:
            parameter.requires_grad_(False)
        with evaluating(model):
            yield


def _metric_state(metric: Metric) -> dict[str, object]:
    """Return the attributes of a metric that an update changes, tensors and lists copied."""
    state: dict[str, object] = {
        name: metric.__dict__[name]
        for name in ("_update_count", "_computed", "_forward_cache", "_should_unsync", "_is_synced", "_cache")
        if name in metric.__dict__
    }
    for name in metric._defaults:
        value = getattr(metric, name)
        state[name] = value.clone() if isinstance(value, Tensor) else list(value)
    return state


@contextmanager
def _no_attention_fast_path() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    with afterwards(lambda: torch.backends.mha.set_fastpath_enabled(enabled)):
        torch.backends.mha.set_fastpath_enabled(False)
        yield


_RANDOM_STATES = ProcessWide(_kept_random_states)
_DIFFERENTIABLE = ProcessWide(
    partial(sdpa_kernel, SDPBackend.MATH),
    _no_attention_fast_path,
    partial(torch.compiler.set_stance, "force_eager"),
)
_NO_FUSED_RNN = ProcessWide(
    partial(torch.backends.mkldnn.flags, enabled=False),
    partial(torch.backends.cudnn.flags, enabled=False),  # its backward pass needs training mode
)
