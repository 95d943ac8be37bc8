"""Taps on layers: every call of a layer in a forward pass, and the gradient of its output in each backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import sample_count
from .evaluator import Evaluator
from .perturbation import Perturbations


@dataclass(frozen=True)
class Use:
    """One call of a layer.

    Attributes:
        layer: Name of the layer.
        inputs: Its input, detached; not copied.
        version: Counts writes to the input, so that one after the call is noticed.
        extra: Further positional arguments (``output_size`` of ConvTranspose).
    """

    layer: str
    inputs: Tensor
    version: int
    extra: tuple[object, ...]


class LayerTaps:
    """Runs a model with taps on its quantized layers.

    No parameter requires a gradient here; gradients start at the outputs of the first layers, so that a backward pass
    makes nothing but the gradients of activations. An embedding whose indices are the same for all samples (positions)
    has its output repeated for each sample, so that samples can be told apart; should a model not take that as the
    broadcasting that it is, it is run without.
    """

    def __init__(
        self, evaluator: Evaluator, perturbations: Perturbations, on_gradient: Callable[[Use, Tensor], None]
    ) -> None:
        """Prepare.

        Args:
            evaluator: Runs the model.
            perturbations: Knows the layers.
            on_gradient: Called in backward passes with a use and the gradient of its output.
        """
        self._evaluator = evaluator
        self._perturbations = perturbations
        self._on_gradient = on_gradient
        self._recording = False
        self._samples: int | None = None
        self._repeated = False
        self._may_repeat = True
        self._repeating_is_safe = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the taps, for forward and backward passes."""
        handles = [
            module.register_forward_hook(self._hook(layer), with_kwargs=True)
            for layer, module in self._perturbations.modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def outputs(self, batch: Any) -> Tensor:
        """Return the outputs of the model, with a graph behind them if any layer was called."""
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
            if outputs is None or outputs.shape != plain.shape or float((outputs - plain).abs().max()) > 1e-3 * scale:
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

    def _hook(self, layer: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return output
            inputs = args[0] if args else kwargs["input"]
            version = inputs._version
            if self._may_repeat and isinstance(module, nn.Embedding) and not self._has_samples(inputs):
                assert self._samples is not None
                lead = 1 if inputs.dim() > 1 else 0
                output = output.expand(self._samples, *output.shape[lead:])
                inputs = inputs.expand(self._samples, *inputs.shape[lead:])
                self._repeated = True
            if not output.requires_grad:  # nothing before it is differentiated: the gradient ends here
                output = output.detach().requires_grad_().clone()
            if self._recording:
                size = kwargs.get("output_size")
                use = Use(layer, inputs.detach(), version, (*args[1:], *(() if size is None else (size,))))
                output.register_hook(lambda gradient: self._on_gradient(use, gradient))
            return output

        return hook

    def _has_samples(self, indices: Tensor) -> bool:
        """Tell whether the indices of an embedding may differ between samples: [N, ...], or not [1, ...] or [T]."""
        if self._samples is None or self._samples == 1 or indices.dim() == 0:
            return True
        return indices.shape[0] == self._samples or (indices.dim() > 1 and indices.shape[0] != 1)
