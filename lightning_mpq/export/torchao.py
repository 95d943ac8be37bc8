"""A policy as torchao's configuration by layer name (extra ``torchao``)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from ..grids.base import IntegerForm
from ..grids.registry import grid_named
from ..policy import BitPolicy
from ..schemes import WeightScheme
from ..tools.kinds import checked_kinds
from .extras import require
from .quantized_inputs import refuse_quantized_inputs

PURPOSE = "Writing a torchao configuration"


@checked_kinds
def torchao_config(policy: BitPolicy) -> Any:
    """Return a policy as torchao's ``FqnToConfig``, for ``torchao.quantize_(float_model, config, filter_fn=None)``.

    It says which layer gets how many bits, in channels or blocks, with zero points or without. torchao rounds the
    float weights itself: to nearest, with scales from the largest weights. So it is the policy that is carried over,
    not our codes; and as a calibrated clip range or rounding cannot be, schemes that ask for one are refused.
    ``replace(scheme, clip="absmax", rounding="nearest")`` says that torchao's own rounding is welcome.
    torchao stores a byte for each weight at any width.

    Args:
        policy: Groups of Linear layers; their blocks must divide the columns, which torchao checks.

    Raises:
        ImportError: If torchao is not installed.
        ValueError: If torchao cannot express a scheme; the layer is named.

    Returns:
        ``torchao.quantization.FqnToConfig`` with an ``IntxWeightOnlyConfig`` for each layer.
    """
    quantization = require("torchao", "torchao.quantization", PURPOSE)
    refuse_quantized_inputs(policy.inputs(), "torchao_config")
    configs: OrderedDict[str, Any] = OrderedDict()
    for layer, scheme in policy.weights().items():
        if reason := _why_not(scheme):
            raise ValueError(
                f"torchao cannot carry the layer {layer!r} ({scheme}): {reason}. Give it another scheme, or use "
                "another export."
            )
        block = scheme.granularity
        mapping = quantization.MappingType
        configs[layer] = quantization.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{scheme.bits}"),
            granularity=quantization.PerGroup(block) if isinstance(block, int) else quantization.PerAxis(0),
            mapping_type=mapping.ASYMMETRIC if _form(scheme).offset is None else mapping.SYMMETRIC_NO_CLIPPING_ERR,
            scale_dtype=getattr(torch, scheme.scale_dtype),
        )
    return quantization.FqnToConfig(configs)


def _form(scheme: WeightScheme) -> IntegerForm:
    form = grid_named(scheme.grid).integer_form(scheme.bits)
    assert form is not None
    return form


def _why_not(scheme: WeightScheme) -> str | None:
    """Return why ``IntxWeightOnlyConfig`` cannot express a scheme; None if it can."""
    form = grid_named(scheme.grid).integer_form(scheme.bits)
    if form is None or form.steps > 1:
        return f"it has no {scheme.grid!r} grid"
    if scheme.granularity == "tensor":
        return "it has scales for channels and blocks, not for a whole tensor"
    if scheme.clip != "absmax" or scheme.rounding != "nearest":
        return (
            f"it rounds to nearest with scales from the largest weights, not with clip={scheme.clip!r} and "
            f"rounding={scheme.rounding!r}"
        )
    return None
