"""Packed models as standard ONNX, whose integers onnxruntime multiplies with directly."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...grids.registry import grid_named
from ...modules import PackedLayer, packed_layers, policy_of
from ...network.layer_kinds import ParameterView
from ...network.modes import evaluating
from ...tools.checks import shown
from ...tools.files import write_bytes_atomically
from ..extras import require
from ..float_twins import float_twins, weight_names
from .containers import FOUR_BITS_OPSET, TWO_BITS_OPSET

POLICY_KEY = "lightning_mpq.policy"


@dataclass(frozen=True)
class OnnxExport:
    """What `export_onnx` wrote, and how it was checked.

    Attributes:
        path: The file.
        file_bytes: Its size.
        opset: Version of the standard operations.
        containers: Layer name to the ONNX type that holds its codes; a layer that the model never calls is not there.
        fused: How many products onnxruntime computes from the integers (``MatMulNBits``).
        error: Largest difference from PyTorch relative to the largest output, products in float32.
        default_error: The same by onnxruntime's default, which rounds the inputs of fused products to 8 bits.
        batch_sizes: Batch sizes that were compared.
    """

    path: Path
    file_bytes: int
    opset: int
    containers: Mapping[str, str]
    fused: int
    error: float
    default_error: float
    batch_sizes: tuple[int, ...]


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Tensor | Sequence[Tensor],
    *,
    dynamic_batch: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
    tolerance: float = 1e-4,
) -> OnnxExport:
    """Write a packed model as ONNX and prove in onnxruntime that it computes what the PyTorch model computes.

    Every packed weight becomes its integers and a standard ``DequantizeLinear``: 2 bits in INT2, 3 and 4 in INT4, 5 to
    8 in INT8 (unsigned with zero points). Weights are exactly the packed model's; the policy with the true bits is in
    the file's metadata under ``lightning_mpq.policy``. Linear layers are stored so that onnxruntime multiplies with the
    integers; convolutions, tables and weights that are used in two places (stored once) are dequantized when they run.
    Needs the extra ``onnx``.

    The half grid has no integer levels. It is written as twice the level at half the scale, which takes 2, 4 and 8 bits
    to the next wider type; in front of anything but a product half a scale is added instead, and the type kept.

    Args:
        model: A packed model; it is left as it was, in its mode too. The export has the model in eval mode.
        path: Where to write; the file is put in place in one step after all checks, or not at all.
        example_inputs: What ``forward`` takes, one tensor or several.
        dynamic_batch: Whether the first dimension of all inputs may have any size; two sizes are compared then.
        input_names: Names of the inputs; those of ``forward`` by default.
        output_names: Names of the outputs.
        opset: Version of the standard operations. By default 21, or 25 if INT2 is needed; with less, 2 bits are held
            in INT4.
        tolerance: Largest difference allowed, relative to the largest output.

    Returns:
        What was written, and how far onnxruntime's outputs are from PyTorch's.

    Raises:
        ImportError: If a package of the extra is missing.
        TypeError: If the inputs are not tensors.
        ValueError: If nothing is packed, the model or a layer (it is named) cannot be carried, or results differ.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require("onnx", package, "Exporting to ONNX")
    from .check import compare  # these files import the packages of the extra
    from .trace import put_codes_in, serialized, trace

    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs or not all(isinstance(value, Tensor) for value in inputs):
        raise TypeError(f"example_inputs must be a tensor or several, got {shown(example_inputs)}.")
    layers = packed_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no packed layer to export; quantize it first.")
    _refuse_changing_weights(layers)
    _refuse_other_grids(layers)
    if opset is None:
        opset = TWO_BITS_OPSET if any(map(_may_have_two_bits, layers.values())) else FOUR_BITS_OPSET
    owners = {name: (layer, layers[layer]) for name, layer in weight_names(model).items()}
    batches = two_batch_sizes(inputs) if dynamic_batch else [inputs]
    with evaluating(model), torch.no_grad():
        expected = [_outputs(model, batch, batches) for batch in batches]
        with float_twins(model):
            exported = trace(model, batches[0], opset, dynamic_batch, input_names, output_names)
    containers = put_codes_in(exported, owners)
    exported.metadata_props[POLICY_KEY] = json.dumps(json.loads(policy_of(model).to_json()), separators=(",", ":"))
    content = serialized(exported)
    checked = compare(content, batches, expected, tolerance)
    path = write_bytes_atomically(Path(path), content)
    return OnnxExport(
        path=path,
        file_bytes=len(content),
        opset=opset,
        containers=containers,
        fused=checked.fused,
        error=checked.error,
        default_error=checked.default_error,
        batch_sizes=tuple(len(batch[0]) for batch in batches),
    )


def _outputs(model: nn.Module, batch: tuple[Tensor, ...], batches: Sequence[tuple[Tensor, ...]]) -> Any:
    """Return a model's outputs on one of the batches that it is compared on.

    Raises:
        ValueError: If it takes the example inputs, and not a batch of another size.
    """
    try:
        return model(*batch)
    except Exception as error:
        if batch is batches[0]:
            raise
        raise ValueError(
            f"{type(model).__name__} takes the {len(batches[0][0])} samples of example_inputs and not "
            f"{len(batch[0])}: {error}. If its batch size must be fixed, pass dynamic_batch=False."
        ) from error


def two_batch_sizes(inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """Return inputs in two batch sizes of at least two, as export takes a size of one for a constant.

    Raises:
        ValueError: If the inputs have no first dimension in common.
    """
    sizes = {len(value) if value.dim() else 0 for value in inputs}
    if len(sizes) != 1 or 0 in sizes:
        shapes = [list(value.shape) for value in inputs]
        raise ValueError(
            f"A dynamic batch is the first dimension of all inputs, but these have the shapes {shapes}. "
            "Pass dynamic_batch=False."
        )
    if sizes == {1}:
        inputs = tuple(torch.cat([value, value]) for value in inputs)
    return [inputs, tuple(torch.cat([value, value[:1]]) for value in inputs)]


def _may_have_two_bits(layer: PackedLayer) -> bool:
    """Return whether INT2 may hold the codes; a product on the half grid needs more (see `hold`)."""
    multiplied = layer.float_type in (nn.Linear, ParameterView)
    form = grid_named(layer.scheme.grid).integer_form(layer.scheme.bits)
    return layer.scheme.bits == 2 and not (form is not None and form.steps > 1 and multiplied)


def _refuse_other_grids(layers: Mapping[str, PackedLayer]) -> None:
    for name, layer in layers.items():
        if grid_named(layer.scheme.grid).integer_form(layer.scheme.bits) is None:
            raise ValueError(
                f"ONNX cannot carry the layer {name!r} ({layer.scheme}): it stores integers, and the levels of the "
                f"grid {layer.scheme.grid!r} are not equally spaced. Give it another grid, or leave it in float."
            )


def _refuse_changing_weights(layers: Mapping[str, PackedLayer]) -> None:
    for name, layer in layers.items():
        if getattr(layer, "max_norm", None) is not None:
            raise ValueError(
                f"Layer {name!r} ({type(layer).__name__}) renormalises its rows when they are looked up (max_norm), "
                "which ONNX cannot say. Renormalise the table before quantization and set max_norm=None."
            )
