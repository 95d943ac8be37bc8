"""vLLM and transformers by compressed-tensors: what both of them read, fused layers of one scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import CorruptModelError
from ..export.compressed_tensors import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    export_compressed_tensors,
    file_bits,
    refusal,
    unread_by_transformers,
)
from ..export.example_inputs import ExampleInputs
from ..export.extras import require
from ..export.float_twins import float_twins
from ..export.outputs import outputs_of
from ..groups.fused import OF_VLLM, side_by_side
from ..schemes import InputScheme, WeightScheme
from ..tools.reading import parse_json, read_text, require_ordinary
from .base import StoredLayer, Target

BLOCKS = (32, 64, 128)
_PARTS = ("weight_packed", "weight_scale", "weight_shape")


class Vllm(Target):
    """vLLM 0.32 and transformers 5.23, by folders in the ``pack-quantized`` format of compressed-tensors 0.20.

    Linear layers of 2 to 8 bits without zero points, by channels or in blocks of 32, 64 or 128 columns. Queries, keys
    and values have one scheme, gate and up projections too, and so have all experts of a block. Tables stay in float,
    and a head that is tied to one.
    """

    name = "vllm"
    extra = "compressed-tensors"
    packages = ("compressed_tensors", "transformers")

    def why_not(self, layer: nn.Module, scheme: WeightScheme) -> str | None:
        """See `Target.why_not`."""
        if scheme.granularity != "channel" and scheme.granularity not in BLOCKS:
            return f"scales belong to channels, or to blocks of {', '.join(map(str, BLOCKS))} columns"
        return refusal(layer, scheme) or unread_by_transformers(layer, scheme)

    def why_not_inputs(self, layer: nn.Module, scheme: InputScheme) -> str | None:
        """See `Target.why_not_inputs`."""
        return "it is offered for weights only here (export_compressed_tensors writes inputs too)"

    def ties(self, model: nn.Module) -> Sequence[Sequence[str]]:
        """See `Target.ties`."""
        ties: dict[str, list[str]] = {}
        for name, layer in model.named_modules():
            above, _, within = name.rpartition(".")[0].rpartition("experts.")
            if not isinstance(layer, nn.Linear):
                continue
            if above and within.isdigit():
                ties.setdefault(above, []).append(name)
        return [*side_by_side(model, OF_VLLM), *(names for names in ties.values() if len(names) > 1)]

    def stored_bits(self, layer: nn.Module, scheme: WeightScheme) -> int:
        """See `Target.stored_bits`."""
        return file_bits(layer, scheme)

    def write(self, model: nn.Module, path: Path, inputs: ExampleInputs) -> None:
        """See `Target.write`."""
        export_compressed_tensors(model, path)

    def read(self, path: Path) -> Mapping[str, StoredLayer]:
        """See `Target.read`."""
        config, found = _read_config(path), {}
        with _opened(path) as file:
            names = set(file.keys())
            for group in config["config_groups"].values():
                for target in group["targets"]:
                    layer = _plain(target)
                    parts = [file.get_tensor(name) for part in _PARTS if (name := f"{layer}.{part}") in names]
                    if not parts:
                        continue
                    digest = sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
                    size = sum(part.numel() * part.element_size() for part in parts)
                    found[layer] = StoredLayer(int(group["weights"]["num_bits"]), size, digest)
        return found

    def outputs(self, path: Path, batches: Sequence[ExampleInputs], model: nn.Module | None) -> list[list[Tensor]]:
        """See `Target.outputs`: what transformers computes, or the model itself with weights that were unpacked."""
        self.require_packages()
        config = parse_json(read_text(path / CONFIG_NAME))
        if architectures := config.get("architectures"):
            kind = getattr(require(self.extra, "transformers", "Reading compressed-tensors"), architectures[0])
            loaded, said = kind.from_pretrained(path, output_loading_info=True, dtype="auto")
            wrong = [*said["missing_keys"], *said["unexpected_keys"], *said["mismatched_keys"]]
            if wrong:
                raise ValueError(f"transformers does not know what to do with {wrong[0]!r}")
            return [outputs_of(loaded, batch) for batch in batches]
        if model is None:
            raise NotImplementedError("it takes the model's own code: pass model=")
        with float_twins(model) as layers:
            for name in self.read(path):
                twin = model.get_submodule(name)
                twin.weight.data = _unpacked(path, name).to(layers[name].weight_dtype)
            return [outputs_of(model, batch) for batch in batches]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = parse_json(read_text(path / CONFIG_NAME))["quantization_config"]
        for name, group in config["config_groups"].items():
            targets, bits = group["targets"], group["weights"]["num_bits"]
            if (
                not isinstance(bits, int)
                or not isinstance(targets, list)
                or not all(isinstance(t, str) for t in targets)
            ):
                raise ValueError(f"{name!r} does not say layers and num_bits")
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptModelError(
            f"{path / CONFIG_NAME} is no configuration that was exported here: {error!r}."
        ) from error
    return config


def _opened(path: Path) -> Any:
    try:
        require_ordinary(path / WEIGHTS_NAME)
        return safe_open(path / WEIGHTS_NAME, framework="pt")
    except Exception as error:  # safetensors has errors of its own
        raise CorruptModelError(f"{path / WEIGHTS_NAME} cannot be read: {error}.") from error


def _plain(target: str) -> str:
    """Return the name of a layer from what matches it."""
    if not target.startswith("re:"):
        return target
    prefix, _, inner = target.removeprefix("re:^(").removesuffix("$").partition(")?")
    return (prefix + inner).replace("\\", "")


def _unpacked(path: Path, layer: str) -> Tensor:
    """Return a weight as compressed-tensors unpacks it."""
    helpers = require(Vllm.extra, "compressed_tensors.compressors.pack_quantized.helpers", "Reading compressed-tensors")
    config = _read_config(path)["config_groups"].values()
    bits = next(group["weights"]["num_bits"] for group in config if layer in map(_plain, group["targets"]))
    with _opened(path) as file:
        packed, scale, shape = (file.get_tensor(f"{layer}.{part}") for part in _PARTS)
    levels = helpers.unpack_from_int32(packed, bits, torch.Size(shape.tolist()))
    return (levels.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(1)
