"""Some values of each weight, kept beside its codes: whether a model still has the weights that were rounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..network.named_weights import named_layers
from ..tools.finite import all_finite

_VALUES = 256
_GOLDEN = 0.6180339887498949
"""Its multiples, modulo 1, spread evenly, and fall into no step with rows or columns."""
_NARROWER = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def weight_samples(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return layer name to some values of its weight, spread over all of it, on the CPU."""
    return {name: sample for name, layer in layers.items() if (sample := _sample(layer)) is not None}


@torch.no_grad()
def refuse_changed(model: nn.Module, samples: Mapping[str, Tensor], layers: Iterable[str]) -> None:
    """Refuse a model whose weights are others than those that were rounded; another device or type changes nothing.

    What is not there, not finite or no plain weight is left to who needs it.

    Raises:
        ValueError: If a weight has changed.
    """
    known = named_layers(model, remove_duplicate=False)
    wanted = {name: known[name] for name in layers if name in samples and name in known}
    changed = [name for name, now in weight_samples(wanted).items() if not _same(samples[name], now)]
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ValueError(
            f"The weight of layer {changed[0]!r}{others} is not the one that was rounded: the model was trained on "
            "since, or is another one, and its codes would put the earlier weights back. Call round_candidates again "
            "with this model, or leave rounded= out."
        )


def _sample(layer: nn.Module) -> Tensor | None:
    parameter = layer._parameters.get("weight")
    if parameter is None or parameter.is_meta or not parameter.numel():
        return None
    weight, count = parameter.detach(), parameter.numel()
    places = torch.arange(min(count, _VALUES))
    if count > _VALUES:
        places = (places.double() * _GOLDEN % 1 * count).long()
    return weight[torch.unravel_index(places.to(weight.device), weight.shape)].cpu()


def _same(before: Tensor, now: Tensor) -> bool:
    """Tell whether values are what these were, maybe rounded to a narrower type on the way."""
    if len(before) != len(now):
        return False
    if not all_finite(now):
        return True
    types = dict.fromkeys((before.dtype, *_NARROWER))
    return any(torch.equal(before.to(narrow).to(now.dtype), now) for narrow in types)
