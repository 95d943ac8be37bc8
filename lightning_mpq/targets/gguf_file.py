"""GGUF files: read, and written again with other tensors in the places of some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CorruptModelError
from ..export.extras import require
from ..tools.reading import require_ordinary
from .gguf_names import EXTRA

Array = npt.NDArray[Any]
_MADE_ANEW = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture", "general.file_type")


def opened(path: Path) -> Any:
    """Return a ``gguf.GGUFReader``.

    Raises:
        CorruptModelError: If it is no GGUF file that can be read.
    """
    gguf = require(EXTRA, "gguf", "The target 'llama-cpp'")
    require_ordinary(path)
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # it has no errors of its own: whatever numpy says of what is cut off
        raise CorruptModelError(f"{path} is no GGUF file that can be read: {error!r}.") from error


def value_of(file: Any, key: str) -> Any:
    """Return a value of the metadata; None if there is none."""
    field = file.get_field(key)
    return None if field is None else field.contents()


def write_with(file: Any, path: Path, tensor: Callable[[Any], tuple[Array, Any]], texts: Mapping[str, str]) -> None:
    """Write the metadata of a file, and its tensors as a function says.

    Args:
        file: What `opened` returned.
        path: Where to.
        tensor: Gives the content and type of each tensor of the file.
        texts: More metadata.
    """
    gguf = require(EXTRA, "gguf", "The target 'llama-cpp'")
    writer = gguf.GGUFWriter(path, str(value_of(file, "general.architecture")))
    if file.alignment != gguf.GGUF_DEFAULT_ALIGNMENT:
        writer.data_alignment = file.alignment
    for key, field in file.fields.items():
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        if key in _MADE_ANEW or key in texts or (array and len(field.types) == 1):  # nothing is in it
            continue
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=field.types[-1] if array else None)
    for key, text in texts.items():
        writer.add_string(key, text)
    for each in file.tensors:
        content, kind = tensor(each)
        writer.add_tensor(each.name, np.ascontiguousarray(content), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def floats_of(tensor: Any) -> Array:
    """Return a tensor of a file in float32, of whatever type it is there."""
    gguf = require(EXTRA, "gguf", "The target 'llama-cpp'")
    found: Array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return found.reshape(tuple(reversed(tensor.shape.tolist())))
