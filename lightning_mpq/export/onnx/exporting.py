"""Packed models as standard ONNX, whose integers onnxruntime multiplies with directly."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...grids.registry import grid_named
from ...modules import PackedLayer, packed_layers, policy_of
from ...modules.quantized_operands import operand_ranges
from ...network.caching import caching
from ...network.compiled import uncompiled
from ...network.modes import evaluating
from ...schemes import WeightScheme
from ...tools.files import write_bytes_atomically
from ...tools.kinds import checked_kinds
from ..example_inputs import ExampleInputs, Examples
from ..extras import require
from ..float_twins import float_twins, shared_key, weight_names
from .containers import FOUR_BITS_OPSET, TWO_BITS_OPSET, multiplies

POLICY_KEY = "lightning_mpq.policy"
TOLERANCE, ROUNDED_TOLERANCE = 1e-4, 0.05
"""Differences from PyTorch, relative to the largest output, that summing in another order explains; the latter where a
sum is rounded again, so that its last bit may move it by a step."""
SPREAD = 4.0
"""How many times as far from PyTorch as on the example inputs a file may be on others, whose products of integers round
each token themselves."""


@dataclass(frozen=True)
class OnnxExport:
    """What `export_onnx` wrote, and how it was checked.

    Attributes:
        path: The file.
        file_bytes: Its size.
        opset: Version of the standard operations.
        containers: Layer name to the ONNX type that holds its codes; a layer that the model never calls is not there.
        fused: How many products onnxruntime computes from the integers (``MatMulNBits``).
        integers: How many convolutions and products it computes of integers and integers.
        lookups: How many tables it dequantizes row by row (``GatherBlockQuantized``).
        error: Largest difference from PyTorch relative to the largest output, products in float32.
        default_error: The same of the file as onnxruntime runs it by default, where inputs of products that it computes
            from integers are rounded to 8 bits.
        batch_sizes: Batch sizes that were compared.
    """

    path: Path
    file_bytes: int
    opset: int
    containers: Mapping[str, str]
    fused: int
    integers: int
    lookups: int
    error: float
    default_error: float
    batch_sizes: tuple[int, ...]


@checked_kinds
def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Examples | ExampleInputs,
    *,
    dynamic_batch: bool = True,
    dynamic_length: bool | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
    tolerance: float | None = None,
    standard: bool = True,
    integer_products: bool = False,
) -> OnnxExport:
    """Write a packed model as ONNX and prove in onnxruntime that it computes what the PyTorch model computes.

    Every packed weight becomes its integers and a standard ``DequantizeLinear``: 2 bits in INT2, 3 and 4 in INT4, 5 to
    8 in INT8 (unsigned with zero points). Weights are exactly the packed model's; the policy with the true bits is in
    the file's metadata under ``lightning_mpq.policy``. Linear layers are stored so that onnxruntime multiplies with the
    integers; convolutions, tables and weights that are used in two places (stored once) are dequantized when they run.
    Needs the extra ``onnx``.

    Where inputs are quantized, onnxruntime computes convolutions and products of integers (``QLinearConv``,
    ``ConvInteger``, ``MatMulIntegerToFloat``), which add up in 32 bits, and BatchNorm after a convolution becomes part
    of its scales. Transposed convolutions, blocks of columns, and weights of 8 bits on a grid that needs more get
    rounded inputs and compute in float32.

    The half grid has no integer levels. It is written as twice the level at half the scale, which takes 2, 4 and 8 bits
    to the next wider type; in front of anything but a product half a scale is added instead, and the type kept.

    Args:
        model: A packed model; it is left as it was, in its mode too. The export has the model in eval mode.
        path: Where to write; the file is put in place in one step after all checks, or not at all.
        example_inputs: What ``forward`` takes: one tensor, several, or a mapping from its arguments to tensors.
        dynamic_batch: Whether the first dimension of all inputs may have any size; two sizes are compared then.
        dynamic_length: Whether the second dimension of integer matrices among arguments by name, tokens, may too; by
            default where there are such, and the batch is dynamic.
        input_names: Names of the inputs; those of ``forward`` by default.
        output_names: Names of the outputs.
        opset: Version of the standard operations. By default 21, or 25 if INT2 is needed; with less, 2 bits are held
            in INT4.
        tolerance: Largest difference allowed, relative to the largest output. None: 1e-4, or 0.05 where inputs are
            quantized, since the last bit of a sum may decide which code comes next.
        standard: Whether all operations are those of the ONNX standard, which dequantize a whole table in every call.
            Otherwise the rows that are looked up are dequantized, where that can be, by onnxruntime's own
            ``GatherBlockQuantized``.
        integer_products: Whether products by weights with one scale a row, of layers whose inputs the policy leaves in
            float, are those of integers all the same: each token is rounded to 8 bits by its own largest value, as
            onnxruntime rounds inputs in front of weights in blocks. By its own ``MatMulIntegerToFloat``, so that
            ``standard`` must be False.

    Returns:
        What was written, and how far onnxruntime's outputs are from PyTorch's.

    Raises:
        ImportError: If a package of the extra is missing.
        TypeError: If the inputs are not tensors, or not what the model takes.
        ValueError: If nothing is packed, the model or a layer (it is named) cannot be carried, or results differ.
    """
    if standard and integer_products:
        raise ValueError("Products of integers need an operation of onnxruntime's own: pass standard=False with them.")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require("onnx", package, "Exporting to ONNX")
    from .check import ROUGH, TOLERANCE_KEY, compare  # these files import the packages of the extra
    from .codes import operands_marked
    from .integers import refuse_inputs
    from .lookups import fuse_lookups
    from .token_products import fuse_products
    from .trace import put_codes_in, serialized, trace

    model, inputs = uncompiled(model), ExampleInputs.of(example_inputs)
    dynamic_length = dynamic_batch and inputs.length is not None if dynamic_length is None else dynamic_length
    if dynamic_length and not dynamic_batch:
        raise ValueError("A dynamic length is tried at another batch size: pass dynamic_batch=True with it.")
    layers = packed_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no packed layer to export; quantize it first.")
    refuse_inputs(layers)
    for name, layer in layers.items():
        if (reason := refusal(layer, layer.scheme)) is not None:
            raise ValueError(
                f"ONNX cannot carry the layer {name!r} ({layer.scheme}): {reason}. Give it another scheme, or leave it "
                "in float."
            )
    if opset is None:
        opset = TWO_BITS_OPSET if any(map(_uses_two_bits, layers.values())) else FOUR_BITS_OPSET
    owners = {name: (layer, layers[layer]) for name, layer in weight_names(model).items()}
    batches = inputs.in_two_sizes(dynamic_length=dynamic_length) if dynamic_batch else [inputs]
    shapes = inputs.dynamic_shapes(dynamic_length=dynamic_length) if dynamic_batch else None
    with evaluating(model), torch.no_grad(), caching(model, use_cache=False):
        expected = [_outputs(model, batch, batches) for batch in batches]
        with float_twins(model), operands_marked():
            exported = trace(model, batches[0], opset, shapes, input_names, output_names)
    containers = put_codes_in(exported, owners, operand_ranges(model))
    tables = {} if standard else fuse_lookups(exported)
    held_in = {shared_key(owners[name][1]): container for name, container in tables.items()}
    containers |= {name: held_in[key] for name, layer in layers.items() if (key := shared_key(layer)) in held_in}
    exported.metadata_props[POLICY_KEY] = json.dumps(json.loads(policy_of(model).to_json()), separators=(",", ":"))
    if tolerance is None:
        tolerance = ROUNDED_TOLERANCE if policy_of(model).inputs() else TOLERANCE
    exported.metadata_props[TOLERANCE_KEY] = f"{tolerance:g}"
    content = serialized(exported)
    try:
        checked = compare(content, batches, expected, tolerance)
    except ValueError as error:
        if all(layer.weight_dtype != torch.bfloat16 for layer in layers.values()):
            raise
        raise ValueError(
            f"{error} onnxruntime computes little in bfloat16 on a CPU: convert the model first, model.float()."
        ) from error
    if integer_products and fuse_products(exported):
        rounded = compare(serialized(exported), batches, expected, max(tolerance, ROUGH))
        limit = min(ROUGH, max(ROUNDED_TOLERANCE, SPREAD * rounded.error))
        exported.metadata_props[TOLERANCE_KEY] = f"{max(tolerance, limit):g}"
        content = serialized(exported)
        checked = replace(rounded, error=checked.error)
    path = write_bytes_atomically(Path(path), content)
    return OnnxExport(
        path=path,
        file_bytes=len(content),
        opset=opset,
        containers=containers,
        fused=checked.fused,
        integers=checked.integers,
        lookups=len(tables),
        error=checked.error,
        default_error=checked.default_error,
        batch_sizes=tuple(len(batch.tensors[0]) for batch in batches),
    )


def _outputs(model: nn.Module, batch: ExampleInputs, batches: Sequence[ExampleInputs]) -> Any:
    """Return a model's outputs on one of the batches that it is compared on.

    Raises:
        ValueError: If it takes the example inputs, and not a batch of another size.
    """
    try:
        return batch.call(model)
    except Exception as error:
        if batch is batches[0]:
            raise
        shorter = f" of {batch.length} tokens" if batch.length != batches[0].length else ""
        raise ValueError(
            f"{type(model).__name__} takes the {batches[0].samples} samples of example_inputs and not "
            f"{batch.samples}{shorter}: {error.__cause__ or error}. If its sizes must be fixed, pass "
            f"dynamic_batch=False{' or dynamic_length=False' * bool(shorter)}."
        ) from error


def _uses_two_bits(layer: PackedLayer) -> bool:
    """Return whether INT2 may hold the codes; a product on the half grid needs more (see `hold`)."""
    form = grid_named(layer.scheme.grid).integer_form(layer.scheme.bits)
    return layer.scheme.bits == 2 and not (form is not None and form.steps > 1 and multiplies(layer))


def refusal(layer: nn.Module, scheme: WeightScheme) -> str | None:
    """Return why ONNX cannot carry a layer, float or packed, with a scheme; None if it can."""
    if grid_named(scheme.grid).integer_form(scheme.bits) is None:
        return f"it stores integers, and the levels of the grid {scheme.grid!r} are not equally spaced"
    if getattr(layer, "max_norm", None) is not None:
        return (
            "it renormalises its rows when they are looked up (max_norm), which ONNX cannot say; renormalise the table "
            "before quantization and set max_norm=None"
        )
    return None
