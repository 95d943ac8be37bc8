"""Formats that carry weights only refuse layers whose inputs are quantized."""

from __future__ import annotations

from collections.abc import Mapping

from ..schemes import InputScheme


def refuse_quantized_inputs(schemes: Mapping[str, InputScheme], target: str) -> None:
    """Refuse, naming the first, layers whose inputs are quantized.

    Args:
        schemes: Layer name to the scheme of its inputs.
        target: What cannot carry them.

    Raises:
        ValueError: If there are any.
    """
    for layer, scheme in schemes.items():
        raise ValueError(
            f"{target} carries weights only here, and the layer {layer!r} has {scheme}. Give it inputs in float, or "
            "use another export."
        )
