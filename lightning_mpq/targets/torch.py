"""Our own packed layers, in a folder that `load` reads: every layer, width, grid and granularity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from torch import Tensor, nn

from ..export.example_inputs import ExampleInputs
from ..export.manifest import Manifest, read_manifest
from ..export.outputs import outputs_of
from ..export.safetensors import LOCK_NAME, save
from ..export.tensor_file import read_tensors
from ..modules.packed import STORED
from ..tools.clean_up import afterwards
from .base import StoredLayer, Target


class Torch(Target):
    """PyTorch itself, with this package: what `save` writes and `load` reads."""

    name = "torch"
    tolerance = 1e-6

    def write(self, model: nn.Module, path: Path, inputs: ExampleInputs) -> None:
        """See `Target.write`."""
        save(model, path)
        (path / LOCK_NAME).unlink(missing_ok=True)

    def read(self, path: Path) -> Mapping[str, StoredLayer]:
        """See `Target.read`."""
        manifest, tensors = _read(path)
        found = {}
        for layer, scheme in manifest.policy.weights().items():
            names = [name for part in STORED if (name := f"{layer}.{part}") in tensors]
            if names:
                digest = sha256("".join(manifest.tensors[name].sha256 for name in names).encode()).hexdigest()
                size = sum(tensors[name].numel() * tensors[name].element_size() for name in names)
                found[layer] = StoredLayer(scheme.bits, size, digest)
        return found

    def outputs(self, path: Path, batches: Sequence[ExampleInputs], model: nn.Module | None) -> list[list[Tensor]]:
        """See `Target.outputs`."""
        if model is None:
            raise NotImplementedError("it takes the model's own code: pass model=")
        manifest, tensors = _read(path)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with afterwards(lambda: model.load_state_dict(before)):
            model.load_state_dict({**tensors, **{alias: tensors[name] for alias, name in manifest.aliases.items()}})
            return [outputs_of(model, batch) for batch in batches]


def _read(path: Path) -> tuple[Manifest, dict[str, Tensor]]:
    manifest = read_manifest(path)
    return manifest, read_tensors(path / manifest.weights_file, manifest)
