"""Rows of tables dequantized as they are looked up, by ``GatherBlockQuantized`` of onnxruntime.

By the standard alone the whole table is dequantized in every call, and then a few rows are gathered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from .graph import Nodes

DOMAIN = "com.microsoft"
_LEAST_BLOCK = 16
_BITS = {ir.DataType.INT4: 4, ir.DataType.UINT4: 4, ir.DataType.INT8: 8, ir.DataType.UINT8: 8}
_AXES = {"gather_axis": 0, "quantize_axis": 1}


def fuse_lookups(exported: ir.Model) -> dict[str, str]:
    """Let every table of 4 or 8 bits that is looked up, and can be so, be dequantized row by row.

    Blocks are powers of two of at least 16 there, so that a scale a row is repeated for as many blocks as it takes; 8
    bits have no sign. Tables of 2 bits, and those that anything else reads too, stay as they are.

    Args:
        exported: A graph with ``DequantizeLinear`` of constants; changed in place.

    Returns:
        Name of each such table to the ONNX type that holds its codes now.
    """
    tables = [node for node in exported.graph if node.op_type == "DequantizeLinear"]
    stored = [levels for node in tables if (levels := _fuse(exported.graph, node)) is not None]
    if stored:
        exported.opset_imports[DOMAIN] = 1
    return {_table_name(levels): levels.dtype.name for levels in stored if levels.dtype is not None}


def _fuse(graph: ir.Graph, table: ir.Node) -> ir.Value | None:
    """Replace a dequantized table and the look-ups in it; return its codes, or None if that cannot be done."""
    found, half, dead = table.outputs[0], None, [table]
    users = [node for node, _ in found.uses()]
    if len(users) == 1 and users[0].op_type == "Add" and users[0].inputs[0] is found:
        found, half, dead = users[0].outputs[0], users[0].inputs[1], [users[0], table]
        users = [node for node, _ in found.uses()]
    parts = _parts(table)
    looks = all(node.op_type == "Gather" and node.inputs[0] is found for node in users)
    if parts is None or not users or not looks or any(node.attributes.get_int("axis", 0) for node in users):
        return None
    stored = _stored_for_rows(graph, users[0], *parts)
    for gather in users:
        indices, result = gather.inputs[1], gather.outputs[0]
        assert indices is not None
        nodes = Nodes(graph, parts[0].name or "", gather)
        given = [stored[0], indices, *stored[1:]]
        rows = nodes.add("GatherBlockQuantized", given, DOMAIN, bits=_bits(parts[0]), block_size=parts[3], **_AXES)
        if half is not None:
            rows = nodes.add("Add", [rows, nodes.add("Gather", [half, indices])])
        rows.type, rows.shape, rows.name = result.type, result.shape, result.name
        result.name = None
        result.replace_all_uses_with(rows, replace_graph_outputs=True)
        graph.remove(gather, safe=True)
    for node in dead:
        graph.remove(node, safe=True)
    return stored[0]


def _parts(table: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value | None, int] | None:
    """Return levels, scale, zero point and block of a table that can be dequantized row by row; None of another."""
    levels, scale = table.inputs[:2]
    zero = table.inputs[2] if len(table.inputs) > 2 else None
    assert levels is not None
    assert scale is not None
    if levels.const_value is None or levels.dtype not in _BITS or len(levels.const_value.shape) != 2:
        return None
    columns = levels.const_value.shape.numpy()[1]
    by_blocks = table.attributes.get_int("block_size", 0)
    block = by_blocks or (columns & -columns)
    if block & (block - 1) or block < _LEAST_BLOCK or table.attributes.get_int("axis", 1) != bool(by_blocks):
        return None
    if zero is not None and not by_blocks and block < columns and _bits(levels) == 4:
        return None  # no operation repeats them
    return levels, scale, zero, block


def _stored_for_rows(
    graph: ir.Graph, first: ir.Node, levels: ir.Value, scale: ir.Value, zero: ir.Value | None, block: int
) -> list[ir.Value]:
    """Return levels, scales and zero points as ``GatherBlockQuantized`` takes them: with a value for each block."""
    assert levels.const_value is not None
    rows, columns = levels.const_value.shape.numpy()
    shape = [rows, -(-columns // block)]
    nodes = Nodes(graph, _table_name(levels), first)

    def by_block(values: ir.Value) -> ir.Value:
        """Expand [rows] or a single value; onnxruntime does so once, when it loads the file."""
        constant = values if values.const_value is not None else values.producer().inputs[0]  # type: ignore[union-attr]
        assert constant is not None
        assert constant.const_value is not None
        held = constant.const_value.shape.numpy()
        if list(held) == shape:
            return values
        if values.const_value is not None:  # of 4 bits too, which no operation reshapes
            values = _stored_as(graph, values, values.const_value.numpy().reshape(-1, 1), values.dtype)
        elif held:
            values = nodes.add("Reshape", [values, nodes.stored("column", torch.tensor([rows, 1]))])
        return (
            values
            if shape == [rows, 1] == [*held, 1]
            else nodes.add("Expand", [values, nodes.stored("blocks", torch.tensor(shape))])
        )

    stored = [by_block(values) for values in (scale, zero) if values is not None]
    if levels.dtype == ir.DataType.INT8:
        codes = (levels.const_value.numpy().astype(np.int16) + 128).astype(np.uint8)  # 128 is zero where none is given
        levels = _stored_as(graph, levels, codes, ir.DataType.UINT8)
    return [levels, *stored]


def _table_name(levels: ir.Value) -> str:
    return (levels.name or "").removesuffix(".levels")


def _bits(levels: ir.Value) -> int:
    assert levels.dtype is not None
    return _BITS[levels.dtype]


def _stored_as(graph: ir.Graph, value: ir.Value, numbers: Any, dtype: ir.DataType | None) -> ir.Value:
    """Put other numbers in the place of a constant, under its name."""
    assert value.name is not None
    graph.initializers.pop(value.name)
    stored = ir.val(value.name, const_value=ir.tensor(numbers, dtype=dtype))
    graph.initializers.add(stored)
    value.replace_all_uses_with(stored)
    return stored
