"""Other files than ours that the command writes of a packed model: ``export=onnx``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import ListConfig
from torch import Tensor

from ..export import export_compressed_tensors, export_onnx
from ..trainer.calibration_data import batches_outside_of_fit

EXPORTS = ("onnx", "compressed_tensors")
"""Beside the folder ``model/``, which is always written and holds a safetensors file."""


def requested(value: Any) -> tuple[str, ...]:
    """Return the exports that ``export=`` names: none, one, or several.

    Raises:
        ValueError: If one is not known.
    """
    names = () if value is None else tuple(value) if isinstance(value, (list, tuple, ListConfig)) else (str(value),)
    names = tuple(name for name in map(str, names) if name != "safetensors")
    if unknown := [name for name in names if name not in EXPORTS]:
        raise ValueError(f"export={unknown[0]} is not known. Use {', '.join(EXPORTS)}; safetensors are always written.")
    return names


def export(
    name: str, module: L.LightningModule, trainer: L.Trainer, datamodule: L.LightningDataModule | None, folder: Path
) -> Path:
    """Write a packed model in another format, and return where.

    Args:
        name: One of `EXPORTS`.
        module: The packed model.
        trainer: Draws the batch that an ONNX graph is traced with.
        datamodule: The data; None for the module's own loaders.
        folder: Where to.
    """
    if name == "compressed_tensors":
        return export_compressed_tensors(module, folder / name)
    (batch, *_) = batches_outside_of_fit(trainer, module, datamodule, 1, 0)
    path = folder / "model.onnx"
    export_onnx(module.cpu(), path, _inputs(batch))
    return path


def _inputs(batch: Any) -> Tensor:
    """Return what the model is called on: the batch, or its first item.

    Raises:
        ValueError: If that is no tensor.
    """
    first = batch[0] if isinstance(batch, Sequence) and not isinstance(batch, Tensor) else batch
    if not isinstance(first, Tensor):
        raise ValueError(
            f"export=onnx traces the model on one tensor, and the batches hold {type(first).__name__}. Call "
            "lightning_mpq.export_onnx with your own inputs on the saved model."
        )
    return first.cpu()
