"""Taps on layers: every call of a layer in a forward pass, and the gradient of its output in each backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...network.batches import sample_count
from ...network.evaluator import Evaluator
from ...network.layer_calls import LayerCall, watched
from ...network.layer_kinds import kind_of
from .input_perturbation import InputPerturbations
from .perturbation import Perturbations


@dataclass(frozen=True)
class Use:
    """One use of a weight.

    Attributes:
        call: What the layer was called on.
        inputs: Its input, detached, with samples first; not copied.
        version: Counts writes to the input, so that one after the call is noticed.
    """

    call: LayerCall
    inputs: Tensor
    version: int

    @property
    def layer(self) -> str:
        """Name of the layer."""
        return self.call.layer


class LayerTaps:
    """Runs a model with taps on its quantized layers.

    No parameter requires a gradient here; gradients start at the outputs of the first layers, so that a backward pass
    makes nothing but the gradients of activations. An embedding whose indices are the same for all samples (positions)
    has its output repeated for each sample, so that samples can be told apart; should a model not take that as the
    broadcasting that it is, it is run without.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        perturbations: Perturbations,
        on_gradient: Callable[[Use, Tensor], None],
        inputs: InputPerturbations | None,
        on_input_gradient: Callable[[Use, Tensor], None],
    ) -> None:
        """Prepare.

        Args:
            evaluator: Runs the model.
            perturbations: Knows the layers.
            on_gradient: Called in backward passes with a use and the gradient of its output.
            inputs: Knows the layers, and the sums, the gradients of whose inputs are wanted; None for none.
            on_input_gradient: Called in backward passes with a use and the gradient of its input.
        """
        self._evaluator = evaluator
        self._perturbations = perturbations
        self._on_gradient = on_gradient
        self._inputs, self._on_input_gradient = inputs, on_input_gradient
        self._recording = False
        self._samples: int | None = None
        self._repeated = False
        self._may_repeat = True
        self._repeating_is_safe = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the taps, for forward and backward passes."""
        kinds = {layer: kind_of(module) for layer, module in self._perturbations.modules.items()}
        linear = {layer for layer, kind in kinds.items() if kind is not None and kind.operation != "nonlinear"}
        layers = {layer: module for layer, module in self._perturbations.modules.items() if layer in linear}
        tapped = nullcontext() if self._inputs is None else self._inputs.changed(self._tap_input)
        with tapped, watched(self._evaluator.model, layers, self._tap):
            yield

    def outputs(self, batch: Any) -> Tensor:
        """Return the outputs of the model, with a graph if any layer was called."""
        outputs: Tensor | None = None
        try:
            outputs = self._run(batch)
        except (RuntimeError, TypeError):
            if not self._repeated:
                raise
        if self._repeated and not self._repeating_is_safe:
            with torch.no_grad():
                plain = self._evaluator.outputs(batch)
            scale = float(plain.abs().max())
            if (
                outputs is None
                or outputs.shape != plain.shape
                or float((outputs.detach() - plain).abs().max()) > 1e-3 * scale
            ):
                self._may_repeat = False
                return self._run(batch)
            self._repeating_is_safe = True
        assert outputs is not None
        return outputs

    def _run(self, batch: Any) -> Tensor:
        self._recording, self._repeated = True, False
        self._samples = sample_count(batch)
        try:
            return self._evaluator.outputs(batch)
        finally:
            self._recording = False  # checkpointed blocks run again in the backward pass

    def _tap(self, call: LayerCall, output: Tensor) -> Tensor:
        """Let the gradient of an output be seen, and start from it if nothing before it is differentiated."""
        if not torch.is_grad_enabled():
            return output
        inputs = call.samples_first(call.inputs.detach())
        version = inputs._version
        kind = kind_of(self._perturbations.modules[call.layer])
        lookup = kind is not None and kind.operation == "lookup"
        if self._may_repeat and lookup and not self._has_samples(inputs):
            assert self._samples is not None
            lead = 1 if inputs.dim() > 1 else 0
            output = output.expand(self._samples, *output.shape[lead:])
            inputs = inputs.expand(self._samples, *inputs.shape[lead:])
            self._repeated = True
        if not output.requires_grad:  # nothing before it is differentiated: the gradient ends here
            output = output.detach().requires_grad_().clone()
        if self._recording:
            use = Use(call, inputs, version)
            output.register_hook(lambda gradient: self._on_gradient(use, call.samples_first(gradient)))
        return output

    def _tap_input(self, layer: str, x: Tensor) -> Tensor:
        """Let the gradient of an input be seen, also where nothing before it is differentiated."""
        if not torch.is_grad_enabled():
            return x
        tapped = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        if self._recording:
            values = x.detach()
            use = Use(LayerCall(layer, values), values, values._version)
            tapped.register_hook(lambda gradient: self._on_input_gradient(use, gradient))
        return tapped

    def _has_samples(self, indices: Tensor) -> bool:
        """Tell whether the indices of an embedding may differ between samples: [N, ...], or not [1, ...] or [T]."""
        if self._samples is None or self._samples == 1 or indices.dim() == 0:
            return True
        return indices.shape[0] == self._samples or (indices.dim() > 1 and indices.shape[0] != 1)
