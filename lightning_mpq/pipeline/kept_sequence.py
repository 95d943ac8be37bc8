"""Layers rounded in sequence in a folder, found again after exactly equal ones: a job that was killed goes on there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..curvature.cache.fingerprint import hash_batch, hash_content, hash_model, hash_settings
from ..network.calibration import Calibration
from ..network.forward import device_of
from ..quantizers import QuantizedRows
from ..rounding.kept_layers import KeptLayer
from ..rounding.packed_rows import PackedRows
from ..rounding.rounded_weights import RoundedWeights
from ..schemes import WeightScheme
from ..tools.distributed import gather
from .kept_files import KeptFiles

_MADE = 4
"""Counts changes of how layers are rounded in sequence, as the number in `kept_rounding` does for candidates."""


class KeptSequence:
    """Layers rounded in sequence, a file each, whose name says the model, the data and every layer before it.

    Policies that begin alike share the layers up to the first that differs. Where torch.distributed is in use, rank 0
    alone reads and writes.
    """

    def __init__(self, folder: str | Path, calibration: Calibration) -> None:
        """Look at model and data; every process calls this.

        Args:
            folder: The folder, made when it is needed.
            calibration: The model, and batches that can be gone through again.
        """
        batches = gather([hash_batch(batch) for batch in calibration.filled()])
        settings = {"forward_fn": calibration.forward_fn, "sequence": _MADE}
        own = hash_settings(hash_model(calibration.model), [], [], settings)
        self._base = f"{own} {batches}"  # the order of batches counts here
        self._files = KeptFiles(folder, str(device_of(calibration.model)))
        self._before = self._next = ""

    def begin(self, options: Mapping[str, Any], known: Mapping[str, QuantizedRows]) -> None:
        """See `KeptLayers`."""
        self._before = hash_content({"base": self._base, "options": options}, {})
        for layer, rounded in known.items():
            self._pass(layer, rounded)

    def find(self, layer: str, scheme: WeightScheme) -> KeptLayer | None:
        """See `KeptLayers`."""
        self._next = hash_content({"before": self._before, "layer": layer, "scheme": asdict(scheme)}, {})[:32]
        file = self._files.find(self._next)
        if file is None:
            return None
        kept, notes = file
        found = KeptLayer(kept.of_layer(layer, scheme), notes["paired"])
        self._pass(layer, found.rounded)
        return found

    def keep(self, layer: str, found: KeptLayer) -> None:
        """See `KeptLayers`."""
        packed = RoundedWeights((), {(layer, found.rounded.scheme): PackedRows.of(found.rounded)}, {})
        self._files.keep(self._next, packed, f"the layer {layer!r} as it was rounded", {"paired": found.paired})
        self._pass(layer, found.rounded)

    def _pass(self, layer: str, rounded: QuantizedRows) -> None:
        """Let the layers that follow depend on this one."""
        named = {"codes": rounded.codes, "scale": rounded.scale, "zero_point": rounded.zero_point}
        tensors = {name: tensor for name, tensor in named.items() if tensor is not None}
        text = {"before": self._before, "layer": layer, "scheme": asdict(rounded.scheme)}
        self._before = hash_content(text, tensors)
