"""Packed weights in the format of compressed-tensors, for vLLM and transformers (extra ``compressed-tensors``)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..grids.registry import grid_named
from ..modules import PackedLayer, packed_layers, policy_of
from ..modules.inspection import shape_of
from ..network.compiled import uncompiled
from ..network.layer_kinds import float_class
from ..schemes import WeightScheme
from ..tools.changed_class import original_class
from ..tools.kinds import checked_kinds
from ..tools.temporaries import temporary_folder
from .extras import require
from .float_twins import float_twins, weight_names

PACKED, INT8, SEVERAL = "pack-quantized", "int-quantized", "mixed-precision"
"""Formats of layers: packed weights; weights as int8, where inputs are quantized too; and that of a file with both."""
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"


@checked_kinds
def export_compressed_tensors(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write a packed model in the formats of compressed-tensors; decompressed, weights are the same.

    The folder holds ``model.safetensors`` (packed weights, scales in float32, zero points, and everything else that
    the model stores) and ``config.json`` with the ``quantization_config``: one config group for all layers of a kind,
    targeted by name. If the model has a configuration of transformers, the config is part of it.

    Linear and Embedding layers can be carried: per tensor, per channel, and in blocks that divide the columns. The half
    grid has no counterpart there and is written exactly as twice the level at half the scale, in one bit more.

    Quantized inputs of Linear layers are carried too, with the stored range or one for each token. Weights are
    ``pack-quantized``, but ``int-quantized`` (int8) where weights and inputs have 8 bits. The library may round ties
    the other way, and its symmetric ranges of tokens reach half a level further.

    Args:
        model: A packed model; it is left as it was.
        folder: Where to write; it must not exist, or be empty. It appears whole or not at all.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds anything.
        ImportError: If compressed-tensors is not installed.
        ValueError: If nothing is packed, a layer cannot be carried, or a model of transformers has zero points or
            packed tables, which transformers does not read; the layer is named, with its scheme and the reason.
    """
    quantization = require("compressed-tensors", "compressed_tensors.quantization", "Exporting to compressed-tensors")
    model = uncompiled(model)
    layers = packed_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no packed layer to export; quantize it first.")
    if sums := policy_of(model).operands:
        raise ValueError(
            f"export_compressed_tensors carries inputs of Linear layers, and {next(iter(sums))!r} reads quantized "
            "tensors too. Quantize with a policy whose operands are {}, or use another export."
        )
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if to_dict is not None:
        _refuse_unread(layers)
    arguments = {name: _arguments(name, layer) for name, layer in layers.items()}
    prefix = getattr(model, "base_model_prefix", "") if to_dict is not None else ""
    by_group: dict[str, list[str]] = {}
    for name, values in arguments.items():
        inputs = _input_arguments(layers[name])
        group = {"weights": values, "input_activations": inputs, "format": _format(layers[name], values)}
        by_group.setdefault(json.dumps(group, sort_keys=True), []).append(_target(name, prefix))
    formats = {json.loads(group)["format"] for group in by_group}
    config = quantization.QuantizationConfig(
        config_groups={
            f"group_{number}": {"targets": targets, **json.loads(group)}
            for number, (group, targets) in enumerate(by_group.items())
        },
        format=formats.pop() if len(formats) == 1 else SEVERAL,
        quantization_status="compressed",
    )
    tensors = _tensors(model, layers, arguments)
    written = {} if to_dict is None else to_dict()
    if to_dict is not None:
        written["architectures"] = written.get("architectures") or [original_class(model).__name__]
    written["quantization_config"] = config.model_dump(mode="json")
    return _write_folder(Path(folder), tensors, json.dumps(written, indent=2) + "\n")


def _target(name: str, prefix: str) -> str:
    """Return what matches a layer's name, whether or not a model is loaded without its head, as ``AutoModel`` does."""
    inner = name.removeprefix(f"{prefix}.")
    return name if not prefix or inner == name else rf"re:^({re.escape(prefix)}\.)?{re.escape(inner)}$"


def unread_by_transformers(layer: nn.Module, scheme: WeightScheme) -> str | None:
    """Return why transformers (5.23) does not read a layer that compressed-tensors can carry; None if it does.

    It expects a zero point for each row of a weight and finds them packed by eights or so, and it looks up the rows of
    a table without unpacking them; files that compressed-tensors has written itself are refused likewise. Linear layers
    of its own types, as Falcon's, go on to read a weight that is no longer there.
    """
    form = grid_named(scheme.grid).integer_form(scheme.bits)
    if form is not None and form.offset is None:
        return "it does not read packed zero points: leave the grid 'asymmetric' out"
    if float_class(layer) is nn.Embedding:
        return "it does not unpack tables: leave embeddings, and heads tied to them, in float"
    own = original_class(layer)
    if own.__module__.startswith("transformers.") and own.forward is not nn.Linear.forward:
        return f"it does not unpack layers of the type {own.__name__}, which multiply by themselves"
    return None


def _refuse_unread(layers: Mapping[str, PackedLayer]) -> None:
    """Refuse for a model of transformers what its loader does not take.

    Raises:
        ValueError: If a layer is not read.
    """
    unread = {name: why for name, layer in layers.items() if (why := unread_by_transformers(layer, layer.scheme))}
    if unread:
        name, why = next(iter(unread.items()))
        raise ValueError(
            f"transformers does not read {len(unread)} layers, such as {name!r} ({layers[name].scheme}): {why}. "
            "MixedPrecisionQuantization(budget, target='vllm') offers what it reads; quantize the float model again."
        )


def refusal(layer: nn.Module, scheme: WeightScheme) -> str | None:
    """Return why compressed-tensors cannot carry a layer, float or packed, with a scheme; None if it can.

    What depends on the zero points that rounding found is not seen here.
    """
    kind = float_class(layer)
    form = grid_named(scheme.grid).integer_form(scheme.bits)
    rows, columns = shape_of(layer)
    block = scheme.granularity
    grouped = isinstance(block, int) and block < columns
    if kind not in (nn.Linear, nn.Embedding):
        return f"it packs Linear and Embedding layers, and this is a {kind.__name__ if kind else type(layer).__name__}"
    if form is None:
        return f"it stores integers, and the levels of the grid {scheme.grid!r} are not equally spaced"
    if not form.fits_signed(scheme.bits, 8) and form.offset is not None:
        return "levels of the half grid take one bit more there, and it packs at most 8"
    if form.offset is None and scheme.granularity == "tensor":
        return "it keeps zero points for channels and blocks only"
    if isinstance(block, int) and grouped and columns % block:
        return f"its blocks must divide the columns, and {block} does not divide {columns}"
    if grouped and form.offset is None and scheme.bits == 4 and rows <= 8:
        return "it packs 4-bit zero points in blocks for 8 rows or fewer, but fails to read them (0.20)"
    return None


def file_bits(layer: nn.Module, scheme: WeightScheme) -> int:
    """Return the bits of a layer's codes, scales (float32), zero points and shape in the file."""
    rows, columns = shape_of(layer)
    form = grid_named(scheme.grid).integer_form(scheme.bits)
    assert form is not None
    bits, scales = scheme.bits + form.steps - 1, scheme.scale_count(rows, columns)
    words = rows * ceil(columns * bits / 32) + scales
    if form.offset is None:
        words += ceil(rows * bits / 32) * (scales // rows)
    return 32 * words + 2 * 64


def _arguments(name: str, layer: PackedLayer) -> dict[str, Any]:
    """Return the ``QuantizationArgs`` of a layer.

    Raises:
        ValueError: If they cannot describe it.
    """
    scheme = layer.scheme
    block, columns = scheme.granularity, layer.row_shape[1]
    grouped = isinstance(block, int) and block < columns
    reason = refusal(layer, scheme)
    if reason is None and layer.zero_point is not None and int(layer.zero_point.max()) >= 2**scheme.bits:
        reason = f"its zero point {int(layer.zero_point.max())} does not fit {scheme.bits} bits"
    if reason is not None:
        raise ValueError(
            f"compressed-tensors cannot carry the layer {name!r} ({scheme}): {reason}. Leave it in float, give it "
            "another scheme, or use another export."
        )
    form = grid_named(scheme.grid).integer_form(scheme.bits)
    assert form is not None
    strategy = "group" if grouped else "channel" if isinstance(block, int) else block
    return {
        "num_bits": scheme.bits + form.steps - 1,
        "type": "int",
        "symmetric": form.offset is not None,
        "strategy": strategy,
        "group_size": block if grouped else None,
    }


def _input_arguments(layer: PackedLayer) -> dict[str, Any] | None:
    """Return the ``QuantizationArgs`` of a layer's inputs; None where they stay in float."""
    scheme = layer.input_scheme
    if scheme is None:
        return None
    form = {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric}
    return {**form, "strategy": scheme.granularity, "dynamic": not scheme.needs_range}


def _format(layer: PackedLayer, arguments: Mapping[str, Any]) -> str:
    eight = layer.input_scheme is not None and layer.input_scheme.bits == arguments["num_bits"] == 8
    return INT8 if eight and arguments["strategy"] != "group" else PACKED


def _tensors(
    model: nn.Module, layers: Mapping[str, PackedLayer], arguments: Mapping[str, Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Return everything to store by name: layers under each of their names, what is float as it is."""
    places = weight_names(model)
    with float_twins(model):
        stored = {name: value for name, value in model.state_dict().items() if name not in places}
    for parameter, name in places.items():
        prefix = parameter.removesuffix("weight")
        compressed = _compressed(layers[name], arguments[name])
        stored |= {f"{prefix}{key}": value for key, value in compressed.items()}
    return {name: value.detach().cpu().contiguous().clone() for name, value in stored.items()}


def _compressed(layer: PackedLayer, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what compressed-tensors stores for a layer; nothing is rounded."""
    pack = require(
        "compressed-tensors", "compressed_tensors.compressors.pack_quantized.helpers", "Exporting to compressed-tensors"
    ).pack_to_int32
    middle = 2 ** (layer.scheme.bits - 1)
    levels = layer.codes().to(torch.int16) - middle
    scale = layer.scale.float()  # weights come back in the type of the scales
    form = grid_named(layer.scheme.grid).integer_form(layer.scheme.bits)
    assert form is not None
    if form.steps == 2:
        levels, scale = 2 * levels + 1, scale / 2
    bits, packs = int(arguments["num_bits"]), _format(layer, arguments) == PACKED
    codes = levels.to(torch.int8)
    stored = {"weight_packed": pack(codes, bits), "weight_shape": torch.tensor(levels.shape)} if packs else {}
    stored |= {} if packs else {"weight": codes}
    stored["weight_scale"] = scale.reshape(1) if arguments["strategy"] == "tensor" else scale
    if layer.zero_point is not None:
        zero_point = (layer.zero_point.to(torch.int16) - middle).to(torch.int8)
        stored["weight_zero_point"] = pack(zero_point, bits, packed_dim=0) if packs else zero_point
    if layer.input_scale is not None and layer.input_zero_point is not None:
        assert layer.input_scheme is not None
        stored["input_scale"] = layer.input_scale.reshape(1)
        if not layer.input_scheme.symmetric:
            shifted = layer.input_zero_point.to(torch.int16) - 2 ** (layer.input_scheme.bits - 1)
            stored["input_zero_point"] = shifted.to(torch.int8).reshape(1)
    return stored


def _write_folder(folder: Path, tensors: Mapping[str, Tensor], config: str) -> Path:
    """Write both files beside the folder's place, then put it there in one step."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; give a folder that does not exist yet.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent) as (scratch, permissions):
        save_file(dict(tensors), scratch / WEIGHTS_NAME, metadata={"format": "pt"})
        (scratch / WEIGHTS_NAME).chmod(permissions)
        (scratch / CONFIG_NAME).write_text(config)
        scratch.replace(folder)
    return folder
