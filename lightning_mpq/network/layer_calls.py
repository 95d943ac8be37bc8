"""Every use of a weight in a forward pass: calls of layers, and the linear maps that attention makes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from ..tools.attributes import shadowed
from ..tools.clean_up import afterwards
from .experts import ExpertCall, expert_weights, experts_watched
from .hooks import hooked
from .layer_kinds import ParameterView
from .named_weights import held_by
from .own_operation import OwnOperation, wrapped_class


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class LayerCall:
    """One use of a weight.

    Attributes:
        layer: Name of the weight's layer, see `named_layers`.
        inputs: What the layer got first, as it is; of a layer that wraps an operation, what that got.
        extra: Further positional arguments.
        options: Further named arguments.
        rows: Which rows of the weight were used; None for all.
        samples_first: Brings the batch to dimension 0, of inputs and outputs alike.
        tokens: Of an expert: which tokens of ``token_count`` its inputs are; None for inputs in the order of samples.
        token_count: How many tokens all experts share.
        samples_known: Whether it is known which sample each input belongs to.
    """

    layer: str
    inputs: Tensor
    extra: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    rows: slice | None = None
    samples_first: Callable[[Tensor], Tensor] = _as_it_is
    tokens: Tensor | None = None
    token_count: int = 0
    samples_known: bool = True


OnCall = Callable[[LayerCall, Tensor], Tensor]
"""Called with each use and its output; what it returns takes the output's place."""


@contextmanager
def watched(model: nn.Module, layers: Mapping[str, nn.Module], on_call: OnCall) -> Iterator[None]:
    """Report every use of the weights of layers while the context lasts.

    Seen are calls of the modules that hold the weights, within `nn.MultiheadAttention` the projections, of which it
    calls no module, the products of fused experts, and the operations that subclasses wrap. Calls whose first argument
    or output is no tensor are not seen.

    Args:
        model: The model, for its attention modules; their fast path must be switched off.
        layers: Name to layer, or view, to watch.
        on_call: What to do.
    """
    inside = {id(layer): name for name, layer in layers.items()}
    stack = ExitStack()
    with afterwards(stack.close):
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                own = {name: layer for name, layer in layers.items() if held_by(layer)[0] is module}
                if id(module.out_proj) in inside:
                    own[inside[id(module.out_proj)]] = module.out_proj
                if own:
                    stack.enter_context(_projections(module, own, on_call))
        experts: dict[nn.Module, dict[str, Tensor]] = {}
        for name, layer in layers.items():
            owner, attribute = held_by(layer)
            if isinstance(owner, nn.MultiheadAttention):
                continue
            if isinstance(layer, ParameterView) and attribute in expert_weights(owner):
                experts.setdefault(owner, {})[name] = owner._parameters[attribute]  # type: ignore[assignment]
            elif (kind := wrapped_class(layer)) is not None:
                stack.enter_context(_own_operation(name, layer, kind, on_call))
            else:
                stack.enter_context(hooked([(owner, _hook(name, on_call))], with_kwargs=True))
        for owner, weights in experts.items():
            stack.enter_context(experts_watched(owner, weights, _on_expert(on_call)))
        yield


def _on_expert(on_call: OnCall) -> Callable[[ExpertCall, Tensor], Tensor]:
    def report(call: ExpertCall, output: Tensor) -> Tensor:
        return on_call(
            LayerCall(
                call.weight,
                call.inputs,
                rows=call.rows,
                tokens=call.tokens,
                token_count=call.total,
                samples_known=call.known,
            ),
            output,
        )

    return report


@contextmanager
def _own_operation(name: str, layer: nn.Module, kind: type[nn.Module], on_call: OnCall) -> Iterator[None]:
    """Report the operation that a layer makes with its weight, after whatever it does to its inputs."""
    forward = layer.forward

    def on_operation(inputs: Tensor, output: Tensor) -> Tensor:
        return on_call(LayerCall(name, inputs), output)

    def watched_forward(*args: Any, **kwargs: Any) -> Any:
        with OwnOperation(layer, kind, on_operation):
            return forward(*args, **kwargs)

    with shadowed(layer, forward=watched_forward):
        yield


def _hook(name: str, on_call: OnCall) -> Callable[..., Any]:
    """Return a forward hook that reports a call."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        options = {key: value for key, value in kwargs.items() if args or key != "input"}
        inputs = args[0] if args else kwargs.get("input")
        if not isinstance(inputs, Tensor) or not isinstance(output, Tensor):
            return output
        return on_call(LayerCall(name, inputs, args[1:], options), output)

    return hook


@contextmanager
def _projections(attention: nn.MultiheadAttention, layers: Mapping[str, nn.Module], on_call: OnCall) -> Iterator[None]:
    """Report the linear maps of an attention module; layers are its own weights and output projection by name.

    `F.multi_head_attention_forward` projects [positions, batch, width] by the weight or by rows of it, and what
    attention returns as [positions * batch, width].
    """
    forward = attention.forward

    def watched_forward(*args: Any, **kwargs: Any) -> Any:
        batch = 1

        def on_linear(inputs: Tensor, weight: Tensor, output: Tensor) -> Tensor:
            nonlocal batch
            if inputs.dim() == 3:
                batch = inputs.shape[1]
            for name, layer in layers.items():
                own = layer.weight
                assert isinstance(own, Tensor)
                if weight is own or weight._base is own:
                    start = (weight.storage_offset() - own.storage_offset()) // own.shape[1]
                    order = _Unfolded(batch if inputs.dim() == 2 else None)
                    rows = slice(start, start + weight.shape[0])
                    return on_call(LayerCall(name, inputs, rows=rows, samples_first=order), output)
            return output

        with _linear_replaced(on_linear):
            return forward(*args, **kwargs)

    with shadowed(attention, forward=watched_forward):
        yield


@dataclass(frozen=True)
class _Unfolded:
    """[positions, batch, width], or [positions * batch, width] of a known batch, to [batch, positions, width]."""

    batch: int | None

    def __call__(self, tensor: Tensor) -> Tensor:
        return (tensor if self.batch is None else tensor.unflatten(0, (-1, self.batch))).transpose(0, 1)


_ONE_AT_A_TIME = RLock()


@contextmanager
def _linear_replaced(on_linear: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Let ``F.linear`` report (inputs, weight, output) and return what it is given, for one forward of attention.

    Nothing else sees the products in `F.multi_head_attention_forward`: torch-function modes cannot look into a
    function that they intercept, and to compute them outside would be to copy its treatment of masks.
    """
    plain = torch.nn.functional.linear

    def reporting(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return on_linear(input, weight, plain(input, weight, bias))

    with _ONE_AT_A_TIME, shadowed(torch.nn.functional, linear=reporting):
        yield
