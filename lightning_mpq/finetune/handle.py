"""The handle of a fake-quantized model: its learned scales, on and off, packed, saved, and in step on all processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import NonFiniteError
from ..inputs.quantizer import InputRange
from ..modules import pack_model
from ..modules.quantized_operands import operands_in_float
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..tools.clean_up import after_errors, afterwards
from .gradients import average_gradients
from .inputs import InputQuantizer
from .layer import (
    FakeQuantizedLayer,
    fake_quantized_layers,
    fake_quantized_weights,
    float_weights,
    quantizers_in,
    start_all,
    stop_all,
)
from .quantizer import WeightQuantizer


class Learned(NamedTuple):
    """A learned scale, that of a weight or of an input.

    Attributes:
        name: The weight's name, or that of the input.
        parameter: What learns.
        weights: The weight, or those of the layers that the input is multiplied with; it learns where they do.
    """

    name: str
    parameter: nn.Parameter
    weights: tuple[nn.Parameter, ...]


class FakeQuantization:
    """The fake-quantized layers of a model and their learned scales, which are no part of its state dict.

    The learned scales, of weights and of inputs, need an optimizer group of their own
    (``add_param_group({"params": list(handle.parameters()), "weight_decay": 0.0})``), their state must be saved beside
    the model's, and where gradients are averaged over processes by a wrapper that knows the module's parameters only,
    `synchronize_gradients` averages theirs.

    Attributes:
        model: The model.
        policy: What it will be packed to.
        inputs: Layer name to what rounds its inputs; and what rounds operands of sums and averages, by their names.
    """

    def __init__(self, model: nn.Module, policy: BitPolicy, inputs: Mapping[str, InputQuantizer]) -> None:
        self.model = model
        self.policy = policy
        self.inputs = inputs

    @property
    def layers(self) -> dict[str, FakeQuantizedLayer]:
        """The layers with fake-quantized weights by name, each once."""
        return fake_quantized_layers(self.model)

    @property
    def weights(self) -> dict[str, tuple[nn.Parameter, WeightQuantizer]]:
        """Each weight once, and its quantizer, by the first of its names."""
        found: dict[int, tuple[str, nn.Parameter, WeightQuantizer]] = {}
        for name, parameter, quantizer in fake_quantized_weights(self.model):
            found.setdefault(id(quantizer), (name, parameter, quantizer))
        return {name: (parameter, quantizer) for name, parameter, quantizer in found.values()}

    @property
    def quantizers(self) -> dict[str, WeightQuantizer]:
        """The quantizers by the first name of their weight."""
        return {name: quantizer for name, (_, quantizer) in self.weights.items()}

    @property
    def ranges(self) -> dict[str, InputRange]:
        """The ranges that inputs are rounded by now, by layer and operand, where the policy has one.

        Raises:
            NonFiniteError: If a learned one is NaN or infinite; the message names the layer.
        """
        found = {name: quantizer.found(name) for name, quantizer in self.inputs.items()}
        return {name: own for name, own in found.items() if own is not None}

    def learned(self) -> Iterator[Learned]:
        """Yield each scale that learns (relative to that at the start) once: those of weights, then those of inputs."""
        for name, (weight, quantizer) in self.weights.items():
            if quantizer.relative_scale.requires_grad:
                yield Learned(name, quantizer.relative_scale, (weight,))
        named = {name: weight for name, weight, _ in fake_quantized_weights(self.model)}
        readers: dict[InputQuantizer, list[str]] = {}
        for name, inputs in self.inputs.items():
            readers.setdefault(inputs, []).append(name)
        for inputs, names in readers.items():
            parameter = inputs.relative_scale
            if parameter is not None and parameter.requires_grad:
                own = [named[name] for name in names if name in named]
                yield Learned(f"{names[0]}.input", parameter, tuple(own or named.values()))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and learned scales (relative to those at the start), if any learn."""
        for name, parameter, _ in self.learned():
            yield name, parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the learned scales, for an optimizer."""
        for _, parameter in self.named_parameters():
            yield parameter

    def quantized_rows(self) -> dict[str, QuantizedRows]:
        """Return the codes and scales that the next forward pass computes with, by name as in the policy.

        Raises:
            NonFiniteError: If a weight or scale is NaN or infinite; the message names the layer.
        """
        found = {}
        for name, (parameter, quantizer) in self.weights.items():
            try:
                found[name] = quantizer.quantized(parameter)
            except NonFiniteError as error:
                raise NonFiniteError(f"Layer {name!r}: {error}") from error
        return found

    @contextmanager
    def float_weights(self) -> Iterator[None]:
        """Let the layers compute with parameters and inputs unrounded inside of a ``with`` block."""
        with afterwards(operands_in_float(self.model)), float_weights(self.model):
            yield

    def restore(self) -> None:
        """End fake quantization: the layers are of their own classes again, with the weights as trained."""
        stop_all(self.model)
        operands_in_float(self.model)

    def pack(self) -> dict[str, nn.Module]:
        """Replace the layers by packed ones that compute what they computed last, to the last bit.

        Returns:
            Layer name to float layer, for `restore_layers`.

        Raises:
            NonFiniteError: If a weight or scale is NaN or infinite; the model is then as it was.
        """
        rounded = self.quantized_rows()
        ranges, found = self.ranges, quantizers_in(self.model)
        put_operands_back = operands_in_float(self.model)
        with after_errors(put_operands_back), after_errors(lambda: start_all(found)):
            stop_all(self.model)
            return pack_model(self.model, self.policy, rounded, ranges)

    def state_dict(self) -> dict[str, Any]:
        """Return policy and scales as text and tensors, which ``torch.load(weights_only=True)`` opens."""
        return {
            "policy": self.policy.to_json(),
            "ranges": {name: asdict(own.first) for name, own in self.inputs.items() if own.first is not None},
            "learned_ranges": {
                name: own.relative_scale.detach().clone()
                for name, own in self.inputs.items()
                if own.relative_scale is not None
            },
            "quantizers": {name: quantizer.state() for name, quantizer in self.quantizers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take scales from `state_dict`.

        Raises:
            ValueError: If they belong to another policy or other layers.
        """
        if BitPolicy.from_json(state["policy"]) != self.policy:
            raise ValueError(
                "The saved scales belong to another policy; resume with the one that they were saved with."
            )
        own = self.quantizers
        if set(own) != set(state["quantizers"]):
            other = sorted(set(own) ^ set(state["quantizers"]))
            raise ValueError(f"The saved scales and the model differ in the layer {other[0]!r}.")
        for name, saved in state["quantizers"].items():
            own[name].load_state(saved)
        for name, relative in state.get("learned_ranges", {}).items():
            scale = self.inputs[name].relative_scale
            assert scale is not None
            with torch.no_grad():
                scale.copy_(relative)

    def synchronize_gradients(self) -> None:
        """Average the gradients of the learned scales over all processes; call it after each backward pass.

        Every process must call it. Does nothing where ``torch.distributed`` is not in use.
        """
        average_gradients(list(self.parameters()))
