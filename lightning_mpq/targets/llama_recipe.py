"""The verb `llama_recipe`: a policy as ``llama-quantize`` takes it, with an importance matrix."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..export.example_inputs import ExampleInputs
from ..export.extras import require
from ..export.outputs import outputs_of
from ..network.layer_kinds import float_class
from ..policy import BitPolicy
from ..tools.clean_up import afterwards
from ..tools.files import write_text_atomically
from .ggml_blocks import BLOCKS
from .gguf_names import EXTRA, tensor_names
from .menu import refuse_policy
from .registry import target_named

TYPES_NAME, IMPORTANCE_NAME = "tensor-types.txt", "imatrix.gguf"


def llama_recipe(
    model: nn.Module, policy: BitPolicy, folder: str | os.PathLike[str], batches: Iterable[Any]
) -> tuple[Path, Path]:
    """Write a policy of ggml's types and an importance matrix, by which ``llama-quantize`` rounds the float model.

    ``llama-quantize --tensor-type-file tensor-types.txt --imatrix imatrix.gguf model-f16.gguf model.gguf Q8_0`` is then
    what does it. It rounds by the diagonal of each layer's input moment, one weight after the other; ``export_for``
    writes the codes that were found here, which is better.

    Args:
        model: A model of transformers, float or packed; it is left as it was.
        policy: Decided for the target ``"llama-cpp"``.
        folder: Where to.
        batches: Calibration batches, for the mean square of each layer's inputs.

    Returns:
        The file of types, and that of the importance matrix.

    Raises:
        ImportError: If gguf is not installed.
        ValueError: If the policy is of other schemes, or the model's tensors have no names in GGUF.
    """
    gguf = require(EXTRA, "gguf", "llama_recipe")
    refuse_policy(target_named("llama-cpp"), model, policy)
    names = tensor_names(model)
    lines = {}
    for layer, scheme in policy.weights().items():
        if (tensor := names.get(f"{layer}.weight")) is None:
            raise ValueError(f"gguf has no name for the layer {layer!r}; leave it in float by keep_float.")
        assert scheme.grid in BLOCKS
        pattern = tensor.replace(".", r"\.")
        lines[tensor] = f"^{pattern}$={scheme.grid}\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    types = write_text_atomically(folder / TYPES_NAME, "".join(lines.values()))
    squares = _input_squares(model, batches)
    writer = gguf.GGUFWriter(folder / IMPORTANCE_NAME, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", max((count for _, count in squares.values()), default=1))
    for layer, (sums, count) in squares.items():
        if (tensor := names.get(f"{layer}.weight")) is not None:
            writer.add_tensor(f"{tensor}.in_sum2", sums.float().numpy()[None])
            writer.add_tensor(f"{tensor}.counts", np.array([[count]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return types, folder / IMPORTANCE_NAME


def _input_squares(model: nn.Module, batches: Iterable[Any]) -> dict[str, tuple[Tensor, int]]:
    """Return Linear layers to the sum of squares of their inputs, [columns] in float64, and how many these were."""
    found: dict[str, tuple[Tensor, int]] = {}

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs = arguments[0].detach().flatten(0, -2).double().cpu()
            sums, count = found.get(name, (torch.zeros(inputs.shape[1], dtype=torch.float64), 0))
            found[name] = (sums + inputs.square().sum(0), count + len(inputs))

        return hook

    linear = [(name, layer) for name, layer in model.named_modules() if float_class(layer) is nn.Linear]
    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in linear]
    with afterwards(lambda: [handle.remove() for handle in handles]):
        for batch in batches:
            outputs_of(model, ExampleInputs.of_batch(model, batch))
    return found
