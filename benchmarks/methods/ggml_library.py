"""Rounding by ggml itself: ``ggml_quantize_chunk`` of the library that llama-cpp-python brings, by ctypes."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@cache
def _library() -> ctypes.CDLL:
    found = find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise ImportError("llama-cpp-python is not installed, which brings ggml's own rounding")
    library = ctypes.CDLL(str(Path(found.origin).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer = ctypes.c_void_p
    sizes = [ctypes.c_int64] * 3
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, *sizes, pointer]
    return library


def rounded_by_ggml(rows: Tensor, name: str, importance: Tensor | None) -> Tensor:
    """Return a weight [R, C] as ggml rounds it to a type.

    Args:
        rows: The weight.
        name: The type, such as ``"q4_k"``.
        importance: [C], mean squares of inputs; None for ggml's rounding without an importance matrix.
    """
    import gguf

    kind = gguf.GGMLQuantizationType[name.upper()]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    source = np.ascontiguousarray(rows.float().numpy())
    count, columns = source.shape
    target = np.zeros((count, columns // block * size), dtype=np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance.float().numpy())
    address = None if weights is None else weights.ctypes.data
    _library().ggml_quantize_chunk(int(kind), source.ctypes.data, target.ctypes.data, 0, count, columns, address)
    return torch.from_numpy(gguf.quants.dequantize(target, kind))
