"""Files quantized by llama.cpp itself: ``llama_model_quantize`` of the library that llama-cpp-python brings."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

F16 = "MOSTLY_F16"


def quantize_by_llama(source: Path, path: Path, mix: str, importance: Mapping[str, Tensor] | None = None) -> None:
    """Write a file in one of llama.cpp's own mixes of types, as the program ``llama-quantize`` does.

    Args:
        source: GGUF file; weights of it that are rounded already are rounded again.
        path: Where to.
        mix: The mix, such as ``"MOSTLY_Q4_K_M"``.
        importance: Name of a tensor to [columns], mean squares of its inputs; None for none.

    Raises:
        RuntimeError: If llama.cpp says that it failed.
    """
    import llama_cpp

    params: Any = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.allow_requantize = 1, True
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{mix}")
    kept = {name: np.ascontiguousarray(values.float().numpy()) for name, values in (importance or {}).items()}
    entries = (llama_cpp.llama_model_imatrix_data * (len(kept) + 1))()  # the last one, without a name, ends it
    for entry, (name, values) in zip(entries, kept.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if kept:
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp could not write {mix} from {source}")
