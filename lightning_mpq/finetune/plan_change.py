"""Another plan for a model that is being fine-tuned: the same Parameters and handle, with other bits in some layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from .fake_quantization import FakeQuantization, fake_quantize
from .layer import fake_quantized_layers, start_all, stop_all


def change_plan(
    handle: FakeQuantization,
    policy: BitPolicy,
    codes: Mapping[str, QuantizedRows],
    *,
    learn_scales: bool = True,
    margin: float = 0.5,
) -> tuple[dict[nn.Parameter, nn.Parameter], Callable[[], None]]:
    """Let the layers whose scheme differs compute with new grids; those of the others keep weights and learned scales.

    Args:
        handle: The fake-quantized layers; goes on with the new plan.
        policy: The new plan, for the same layers.
        codes: Layer name to the codes and scales to start from, for layers that change; nearest ones where it has none.
        learn_scales: As for `fake_quantize`.
        margin: As for `fake_quantize`.

    Returns:
        The learned scales that are gone, each with the one in its place, which an optimizer must hold instead; and a
        function that takes everything back, buffers and biases included.

    Raises:
        ValueError: If the plan is one of other layers; nothing is changed then.
    """
    model, old_policy, old = handle.model, handle.policy, handle.weights
    before, after = old_policy.by_layer(), policy.by_layer()
    if before.keys() != after.keys():
        other = sorted(before.keys() ^ after.keys())
        raise ValueError(f"The plans differ in whether layer {other[0]!r} is quantized; only its bits may change.")
    same = {name for name in old if before[name] == after[name]}
    present = {name: rows for name, rows in handle.quantized_rows().items() if name in same}
    kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
    paused = stop_all(model)

    def undo() -> None:
        stop_all(model)
        start_all(paused)
        handle.policy = old_policy
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(kept[name])

    try:
        others = {name: rows for name, rows in codes.items() if before[name] != after[name]}
        fake_quantize(model, policy, {**others, **present}, learn_scales=learn_scales, margin=margin)
        learned = {id(old[name][0]): old[name][1] for name in same}
        with torch.no_grad():
            values = model.state_dict(keep_vars=True)
            for name, value in values.items():
                if id(value) in learned:
                    value.copy_(kept[name])
        for layer in fake_quantized_layers(model).values():
            for attribute in layer.weight_quantizers:
                own = learned.get(id(layer._parameters[attribute]))
                if own is not None:
                    layer.weight_quantizers[attribute] = own
        handle.policy = policy
        new = handle.weights
        replaced = {old[name][1].relative_scale: new[name][1].relative_scale for name in old if name not in same}
        for gone, fresh in replaced.items():
            fresh.requires_grad_(gone.requires_grad)
    except BaseException:
        undo()
        raise
    return replaced, undo
