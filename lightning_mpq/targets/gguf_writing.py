"""A packed model of transformers written into the GGUF file of its float model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..export.extras import require
from ..export.float_twins import shared_key
from ..modules import PackedLayer, packed_layers, policy_of
from .ggml_blocks import as_blocks
from .gguf_file import floats_of, opened, value_of, write_with
from .gguf_names import EXTRA, matching_order, row_orders, tensor_names

LAYERS_KEY, POLICY_KEY = "lightning_mpq.layers", "lightning_mpq.policy"
"""Under which the metadata hold tensor to layer, and the policy."""
_ANOTHER_MODEL = 0.7
"""Distance of a rounded weight from that in the file, relative to the latter, which no rounding explains."""
_CHANGED = 0.1
"""The same of a weight in float, which may be rounded to 4 bits in the file."""


def write_packed(model: nn.Module, before: Path, path: Path) -> None:
    """Write a packed model of transformers.

    Args:
        model: The packed model.
        before: The GGUF file of the float model.
        path: Where to.

    Raises:
        ValueError: If the file is that of another model, or has no place for a layer.
    """
    gguf = require(EXTRA, "gguf", "The target 'llama-cpp'")
    file = opened(before)
    names, layers = tensor_names(model), packed_layers(model)
    places = {each.name for each in file.tensors}
    written: dict[str, str] = {}
    of_key: dict[object, str] = {}
    for layer in layers:
        tensor = names.get(f"{layer}.weight")
        if tensor is not None and tensor in places and tensor not in written:
            written[tensor] = layer
            of_key[shared_key(layers[layer])] = layer
    if left := [layer for layer, packed in layers.items() if shared_key(packed) not in of_key]:
        known = names.get(f"{left[0]}.weight")
        said = f"{before} has no tensor {known}" if known else "gguf has no name for it"
        raise ValueError(f"The layer {left[0]!r} has no place in the file: {said}. Leave it in float by keep_float.")
    floats = {names[key]: value for key, value in model.named_parameters() if key in names}
    orders = {
        tensor.rpartition(".")[0]: _order(file, each, written[tensor], layers[written[tensor]])
        for each in file.tensors
        if (tensor := each.name) in written
    }

    def content(tensor: Any) -> tuple[Any, Any]:
        if tensor.name in written:
            rows = layers[written[tensor.name]].quantized_rows()
            on_cpu = type(rows)(rows.codes.cpu(), rows.scale.cpu(), _cpu(rows.zero_point), rows.scheme)
            order = orders[tensor.name.rpartition(".")[0]]
            return as_blocks(on_cpu)[order], gguf.GGMLQuantizationType[rows.scheme.grid.upper()]
        stem, _, part = tensor.name.rpartition(".")
        order = orders.get(stem) if part == "bias" else None
        return _float(file, tensor, floats.get(tensor.name), order)

    texts = {LAYERS_KEY: json.dumps(written), POLICY_KEY: policy_of(model).to_json()}
    write_with(file, path, content, texts)


def _order(file: Any, tensor: Any, name: str, layer: PackedLayer) -> Any:
    """Return in which order the rows of a layer stand in the file of the float model.

    Raises:
        ValueError: If it is another layer that stands there.
    """
    before = torch.from_numpy(floats_of(tensor))
    rows = layer.quantized_rows()
    if tuple(before.shape) != tuple(rows.codes.shape):
        raise ValueError(
            f"The file has {list(before.shape)} weights in {tensor.name}, and the layer {name!r} has "
            f"{list(rows.codes.shape)}: it is the file of another model."
        )
    order, distance = matching_order(rows.dequantize(torch.float32).cpu(), before, _orders(file, tensor))
    if distance > _ANOTHER_MODEL:
        raise ValueError(
            f"{tensor.name} of the file is {distance:.2g} times its own size away from the layer {name!r}: it "
            "is the file of another model, or of one that was trained on since. Convert the float model again."
        )
    return order


def _float(file: Any, tensor: Any, own: Tensor | None, order: Any) -> tuple[Any, Any]:
    """Return a tensor that stays in float: a vector as the model has it, which repair may have changed, else as it was.

    Raises:
        ValueError: If the model has something else, or of another shape.
    """
    if own is None:
        return tensor.data, tensor.tensor_type
    before, now = floats_of(tensor), own.detach().float().cpu().numpy()
    if before.shape != now.shape:
        raise ValueError(f"{tensor.name} has the shape {list(before.shape)}, and the model's is {list(now.shape)}.")
    size = float(np.abs(before).max()) or 1.0
    if tensor.name.endswith(".bias") and before.ndim == 1:
        changed = now if order is None else now[order]
        return changed.astype(tensor.data.dtype), tensor.tensor_type
    if before.ndim > 1:
        _, distance = matching_order(torch.from_numpy(now), torch.from_numpy(before), _orders(file, tensor))
    else:  # Gemma's norms are written with one added
        distance = min(float(np.abs(values - before).max()) for values in (now, now + 1)) / size
    if distance <= _CHANGED:
        return tensor.data, tensor.tensor_type
    raise ValueError(
        f"{tensor.name} is not in the model what it is in the file: the model was trained on since it was converted. "
        "Convert the float model again."
    )


def _orders(file: Any, tensor: Any) -> list[Any]:
    rows = int(tensor.shape[-1])
    key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(tensor.name.split(".")[-2], "")
    heads = value_of(file, f"{value_of(file, 'general.architecture')}.attention.{key}") if key else 0
    return row_orders(rows, heads if isinstance(heads, int) else 0)


def _cpu(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.cpu()
