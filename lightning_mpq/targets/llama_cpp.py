"""llama.cpp by GGUF: its block types as schemes, written into the file of the float model that the user converted."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import CorruptModelError
from ..export.example_inputs import ExampleInputs
from ..export.extras import require
from ..export.outputs import relative_error
from ..grids.registry import grid_named
from ..modules.inspection import shape_of
from ..network.layer_kinds import float_class
from ..schemes import InputScheme, Rounding, WeightScheme
from ..tools.reading import parse_json
from .base import StoredLayer, Target
from .ggml_blocks import BLOCKS, SHARED, bytes_of
from .gguf_file import opened, value_of
from .gguf_names import EXTRA
from .gguf_writing import LAYERS_KEY, write_packed
from .llama_cpp_run import logits_of

_TYPES = ", ".join(BLOCKS)


class LlamaCpp(Target):
    """llama.cpp, by ``.gguf`` files: Linear layers and tables in the block types of ggml.

    Types are grids of ours (``lightning_mpq/grids/ggml.py``): their scales are found and rounded as ggml stores them,
    and their codes by error feedback. K types need columns in multiples of 256, the others of 32.

    Args:
        gguf: The file of the float model, as ``convert_hf_to_gguf.py --outtype f16`` writes it, whose metadata and
            tokenizer are taken over; needed to write, not to decide.
    """

    name = "llama-cpp"
    extra = EXTRA
    packages = ("gguf",)
    ending = ".gguf"
    tolerance = 0.1  # llama.cpp rounds inputs of products to 8 bits

    def __init__(self, gguf: str | os.PathLike[str] | None = None) -> None:
        self.gguf = None if gguf is None else Path(gguf)

    def require_packages(self) -> None:
        """See `Target.require_packages`; the float model's file must be there too.

        Raises:
            FileNotFoundError: If it is not.
            ValueError: If none was given.
        """
        super().require_packages()
        if self.gguf is None:
            raise ValueError(
                "The target 'llama-cpp' writes into the GGUF file of the float model, which has its tokenizer: pass "
                "LlamaCpp(gguf='model-f16.gguf') (target.gguf= on the command line), made by convert_hf_to_gguf.py. "
                "Without one, llama_recipe(model, folder, batches) writes what llama-quantize takes."
            )
        if not self.gguf.is_file():
            raise FileNotFoundError(f"There is no file {self.gguf}; give the GGUF file of the float model.")

    def schemes(self, rounding: Rounding) -> Sequence[WeightScheme]:
        """See `Target.schemes`: ggml's types."""
        clip: Any = "moment" if rounding == "second_order" else "mse"
        return [
            WeightScheme(grid_named(name).bits[0], SHARED[name], name, clip, "float32", rounding) for name in BLOCKS
        ]

    def why_not(self, layer: nn.Module, scheme: WeightScheme) -> str | None:
        """See `Target.why_not`."""
        if float_class(layer) not in (nn.Linear, nn.Embedding):
            return "llama.cpp has Linear layers and tables only"
        if scheme.grid not in BLOCKS or scheme.granularity != SHARED[scheme.grid] or scheme.scale_dtype != "float32":
            return f"its types are {_TYPES}, each with blocks of its own and scales that float32 holds"
        block, columns = BLOCKS[scheme.grid][0], shape_of(layer)[1]
        if columns % block:
            return f"{scheme.grid} stores {block} columns together, and the layer has {columns}"
        return None

    def why_not_inputs(self, layer: nn.Module, scheme: InputScheme) -> str | None:
        """See `Target.why_not_inputs`."""
        return "llama.cpp rounds inputs by itself"

    def stored_bits(self, layer: nn.Module, scheme: WeightScheme) -> int:
        """See `Target.stored_bits`."""
        return 8 * bytes_of(scheme.grid, *shape_of(layer))

    def write(self, model: nn.Module, path: Path, inputs: ExampleInputs) -> None:
        """See `Target.write`.

        Raises:
            ValueError: If the file is that of another model, or has no place for a layer.
        """
        self.require_packages()
        assert self.gguf is not None
        write_packed(model, self.gguf, path)

    def read(self, path: Path) -> Mapping[str, StoredLayer]:
        """See `Target.read`."""
        gguf = require(EXTRA, "gguf", "The target 'llama-cpp'")
        file = opened(path)
        try:
            layers = parse_json(value_of(file, LAYERS_KEY))
            tensors = {each.name: each for each in file.tensors}
            found = {}
            for name, layer in layers.items():
                kind = tensors[name].tensor_type
                bits = int(gguf.GGMLQuantizationType(kind).name.lstrip("IQ")[0])
                content = tensors[name].data.tobytes()
                found[layer] = StoredLayer(bits, len(content), sha256(content).hexdigest())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptModelError(f"{path} is no GGUF file that was exported here: {error!r}.") from error
        return found

    def error(
        self,
        path: Path,
        batches: Sequence[ExampleInputs],
        expected: Sequence[Sequence[Tensor]],
        model: nn.Module | None,
    ) -> float:
        """See `Target.error`: that of the logits, the model's first output, [n, length, classes] or with those before.

        Raises:
            NotImplementedError: If llama-cpp-python is not installed, or the model returns no logits.
        """
        errors = []
        for batch, outputs in zip(batches, expected, strict=True):
            found = logits_of(path, batch)
            own = outputs[0] if outputs[0].shape == found.shape else outputs[0].transpose(1, -1)
            errors.append(relative_error([found], [own], "llama.cpp"))
        return self.tolerated(errors)
