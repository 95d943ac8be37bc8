"""Fake quantization from a saved state: the same weights and scales, nothing rounded or moved anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..inputs.quantizer import InputRange
from ..network.layer_kinds import rows_and_columns
from ..network.named_weights import named_layers
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..tools.clean_up import after_errors, afterwards
from .fake_quantization import FakeQuantization, fake_quantize
from .layer import stop_all


def resume_fake_quantization(
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    learn_scales: bool = True,
    learn_ranges: bool = True,
    margin: float = 0.5,
) -> FakeQuantization:
    """Let a model whose trained weights are loaded compute as it did when the state was saved.

    Args:
        model: Float layers with the weights saved beside the state; on an error it is left as it was.
        state: What `FakeQuantization.state_dict` returned.
        learn_scales: As for `fake_quantize`.
        learn_ranges: As for `fake_quantize`; those of states from before ranges could learn stay as they are.
        margin: As for `fake_quantize`.

    Raises:
        ValueError: If the state does not fit the model.

    Example:
        >>> from lightning_mpq import WeightScheme
        >>> net = nn.Linear(4, 4), nn.Linear(4, 2)
        >>> first, second = nn.Sequential(*net), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> handle = fake_quantize(first, BitPolicy({"0": WeightScheme(bits=3), "1": WeightScheme(bits=2)}))
        >>> keys = second.load_state_dict(first.state_dict())
        >>> again = resume_fake_quantization(second, handle.state_dict())
        >>> torch.equal(first(torch.ones(1, 4)), second(torch.ones(1, 4)))
        True
    """
    policy = BitPolicy.from_json(state["policy"])
    schemes = policy.weights()
    layers = named_layers(model, remove_duplicate=False)
    known = {}
    for name, saved in state["quantizers"].items():
        if name not in layers or name not in schemes:
            raise ValueError(
                f"The saved scales are those of another model: it has no quantized layer {name!r}. Resume with the "
                "model and the policy that they were saved with."
            )
        scheme = schemes[name]
        scale = (saved["first_scale"] * saved["relative_scale"]).to(getattr(torch, scheme.scale_dtype))
        codes = torch.zeros(rows_and_columns(layers[name]), dtype=torch.uint8)
        known[name] = QuantizedRows(codes, scale, saved.get("zero_point"), scheme)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def as_loaded() -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])

    with afterwards(as_loaded), after_errors(lambda: stop_all(model)):
        ranges = {name: InputRange(**found) for name, found in state.get("ranges", {}).items()}
        handle = fake_quantize(
            model, policy, known, ranges=ranges, learn_scales=learn_scales,
            learn_ranges=learn_ranges and "learned_ranges" in state, margin=margin,
        )  # fmt: skip
        handle.load_state_dict(state)
    return handle


def pack_finetuned(model: nn.Module, state: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Pack a model as it was being fine-tuned when a state was saved.

    Args:
        model: Float layers with the weights saved beside the state; on an error it is left as it was.
        state: What `FakeQuantization.state_dict` returned.

    Returns:
        Layer name to float layer, for `restore_layers`.
    """
    with after_errors(lambda: stop_all(model)):
        return resume_fake_quantization(model, state).pack()
