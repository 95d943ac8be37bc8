"""From a PyTorch model to a simplified ONNX graph with codes in the place of weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import Parameter, Signature, signature
from typing import Any

import onnx_ir as ir
import torch
from google.protobuf.message import EncodeError
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from onnxscript import optimizer
from torch import nn

from ...inputs.quantizer import InputRange
from ...modules import PackedLayer
from ...network.caching import caching
from ...quantizers import QuantizedRows
from ...schemes import InputScheme
from ...tools.attributes import shadowed
from ...tools.clean_up import afterwards
from ...tools.process_wide import quiet
from ..example_inputs import ExampleInputs
from ..float_twins import layer_groups, shared_key, to_weight
from .codes import QuantizedTensors, take_marks_out
from .containers import TWO_BITS_OPSET, hold, may_have_two_bits, multiplies
from .graph import merge_shared, put_weight_in, take_weight_out
from .integers import multiply_integers, quantize_inputs_of, round_inputs

TWO_BITS_IR_VERSION = 13
"""The first version of the file format that knows INT2."""

FIXED = "With fixed sizes it can be: pass dynamic_batch=False."
"""Said only where it is true."""
_EITHER = Parameter.POSITIONAL_OR_KEYWORD


def trace(
    model: nn.Module,
    inputs: ExampleInputs,
    opset: int,
    dynamic_shapes: Any,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> ir.Model:
    """Return a float model as an ONNX graph in which every parameter is an initializer under its name.

    Args:
        model: The model.
        inputs: What its ``forward`` takes.
        opset: Version of the standard operations.
        dynamic_shapes: Which dimensions may have any size; None for none.
        input_names: Names of inputs by position; those of ``forward`` by default.
        output_names: Names of the outputs.

    Raises:
        ValueError: If PyTorch cannot export the model.
    """
    forward = _with_named_inputs(model, inputs)
    names: dict[str, Any] = {"input_names": input_names, "output_names": output_names, "opset_version": opset}

    def export(**shapes: Any) -> torch.onnx.ONNXProgram | None:
        with _quiet(), caching(model, use_cache=False), shadowed(model, forward=forward):
            return torch.onnx.export(
                model, inputs.args, kwargs=dict(inputs.kwargs) or None, dynamo=True, optimize=False, verbose=False,
                **names, **shapes,
            )  # fmt: skip

    try:
        program = export(dynamic_shapes=dynamic_shapes)
    except Exception as error:  # the exporter's own type wraps whatever happened
        advice = f" {FIXED}" if dynamic_shapes is not None and succeeds(export) else ""
        raise ValueError(
            f"PyTorch cannot export {type(model).__name__} to ONNX: {first_cause(error)}.{advice}"
        ) from error
    assert program is not None
    return program.model


def _with_named_inputs(model: nn.Module, inputs: ExampleInputs) -> Callable[..., Any]:
    """Return a model's ``forward`` with a parameter for each input; PyTorch knows no shapes of ``*args, **kwargs``."""
    own = model.forward
    expected = signature(own).parameters.values()
    if not any(each.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD) for each in expected):
        return own

    def forward(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    by_place = [each.name for each in expected if each.kind in (Parameter.POSITIONAL_ONLY, _EITHER)]
    by_place += [f"input_{place}" for place in range(len(by_place), len(inputs.args))]
    parameters = [Parameter(name, _EITHER) for name in by_place[: len(inputs.args)]]
    parameters += [Parameter(name, Parameter.KEYWORD_ONLY) for name in inputs.kwargs]
    forward.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return forward


def succeeds(function: Callable[[], object]) -> bool:
    """Tell whether something can be done, before it is recommended."""
    try:
        function()
    except Exception:  # whatever it is, it is no way out
        return False
    return True


def first_cause(error: BaseException) -> str:
    """Return the first line of what went wrong at first; what wraps it says where one may read on."""
    while error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(" .:")


def put_codes_in(
    exported: ir.Model,
    owners: Mapping[str, tuple[str, PackedLayer]],
    operands: Mapping[str, tuple[InputScheme, InputRange]],
) -> dict[str, str]:
    """Replace float weights by codes and simplify the graph.

    Args:
        exported: What `trace` returned; changed in place.
        owners: Name of a parameter to the name of its layer and the layer.
        operands: What is marked in the graph: name to scheme and range.

    Returns:
        Layer name to the ONNX type that holds its codes.

    Raises:
        ValueError: If a layer cannot be carried; it is named.
    """
    graph = exported.graph
    opset = exported.opset_imports[""]
    standing = {name: owner for name, owner in owners.items() if name in graph.initializers}
    kept = merge_shared(graph, {name: shared_key(layer) for name, (_, layer) in standing.items()})
    places = {name: take_weight_out(graph, name) for name in dict.fromkeys(kept.values())}
    with _quiet():
        optimizer.optimize_ir(exported)
    ClearMetadataAndDocStringPass()(exported)  # where each node stood in which Python file
    held_in = {}
    tensors = QuantizedTensors(graph)
    replace_marks = take_marks_out(graph, tensors, operands)
    inputs = {
        name: quantize_inputs_of(tensors, place, layer)
        for name, place in places.items()
        if (layer := standing[name][1]).input_scheme is not None
    }
    tensors.settle()
    replace_marks()
    for name, place in places.items():
        layer_name, layer = standing[name]
        key = shared_key(layer)
        users = [other for _, other in owners.values() if shared_key(other) == key]
        folded = not place.multiplied or not all(map(multiplies, users))
        two_bits = opset >= TWO_BITS_OPSET and may_have_two_bits(
            layer.scheme, layer.row_shape[0], multiplied=place.multiplied, folded=folded
        )
        by_integers = name in inputs
        held = hold(_on_cpu(layer.quantized_rows()), multiplied=place.multiplied or by_integers, two_bits=two_bits)
        held_in[name] = held.container
        to_own = partial(to_weight, layer)
        if by_integers:
            if multiply_integers(graph, place, held, inputs[name], to_own):
                continue
            round_inputs(graph, place, inputs[name])
        try:
            put_weight_in(graph, place, held, to_own, layer_groups(layer))
        except ValueError as error:
            raise ValueError(f"Layer {layer_name!r} ({layer.scheme}) cannot be written as ONNX: {error}.") from error
    RemoveUnusedNodesPass()(exported)  # BatchNorms that are part of scales now, and what they read
    if opset >= TWO_BITS_OPSET:
        exported.ir_version = max(exported.ir_version, TWO_BITS_IR_VERSION)
    by_key = {shared_key(standing[name][1]): held_in[first] for name, first in kept.items()}
    return {name: by_key[key] for name, layer in owners.values() if (key := shared_key(layer)) in by_key}


def serialized(exported: ir.Model) -> bytes:
    """Return the content of the file.

    Raises:
        ValueError: If it is over 2 GB, which one ONNX file cannot hold.
    """
    try:
        return ir.to_proto(exported).SerializeToString()
    except (ValueError, EncodeError) as error:  # protobuf's limit
        raise ValueError(f"The model does not fit in one ONNX file of at most 2 GB: {error}.") from error


def _on_cpu(rows: QuantizedRows) -> QuantizedRows:
    zero_point = None if rows.zero_point is None else rows.zero_point.cpu()
    return QuantizedRows(rows.codes.cpu(), rows.scale.cpu(), zero_point, rows.scheme)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what the exporter says about its own past and about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with afterwards(lambda: logger.setLevel(level)):
        logger.setLevel(logging.ERROR)
        with quiet():
            yield
