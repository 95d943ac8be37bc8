"""LightningModules that load checkpoints of their quantized selves, without the callback that quantized them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ...finetune.resume import pack_finetuned
from ...modules import packed_layers, policy_of
from ...tools.checks import shown
from .checkpoint import POLICY_KEY, finetuned_state, made_ready

Module = TypeVar("Module")


class PackedCheckpoints:
    """Mixin for a LightningModule whose checkpoints may hold packed layers; name it before ``LightningModule``.

    With it ``Net.load_from_checkpoint(path)`` and ``trainer.test(Net(), ckpt_path=path)`` take checkpoints that were
    written after quantization as well as float ones, in any process and without a callback. Checkpoints of a packed
    module carry its policy, also where no callback writes it.

    Example::

        class Net(mpq.PackedCheckpoints, L.LightningModule): ...
    """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the policy of a packed module to a checkpoint about to be written."""
        if packed_layers(self):  # type: ignore[arg-type]
            checkpoint[POLICY_KEY] = policy_of(self).to_json()  # type: ignore[arg-type]
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replace layers by empty packed ones if the checkpoint about to be loaded holds such."""
        with made_ready(self, checkpoint):  # type: ignore[arg-type]
            super().on_load_checkpoint(checkpoint)  # type: ignore[misc]


class _Loading(PackedCheckpoints):
    """Keeps what a checkpoint of fine-tuning says, for when its weights are loaded."""

    _finetuned: Mapping[str, Any] | None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.__dict__["_finetuned"] = finetuned_state(checkpoint)


def load_from_checkpoint(module_class: type[Module], path: str | Path, **options: Any) -> Module:
    """Do what ``module_class.load_from_checkpoint(path)`` does, for checkpoints with packed layers too.

    Those that were written during fine-tuning are packed, whether the class has the mixin `PackedCheckpoints` or not.

    Args:
        module_class: The LightningModule that was trained.
        path: File written by ``Trainer.save_checkpoint`` or ModelCheckpoint, before or after quantization.
        options: What Lightning's ``load_from_checkpoint`` takes, arguments of the class included.

    Returns:
        A new instance, packed if the checkpoint is, or was written while the model was fine-tuned.

    Raises:
        TypeError: If the class is no LightningModule.
    """
    if not isinstance(module_class, type) or not hasattr(module_class, "load_from_checkpoint"):
        raise TypeError(
            f"load_from_checkpoint makes an instance of a LightningModule class, got {shown(module_class)}; "
            "lightning_mpq.load(path, model) loads into one that is there."
        )
    loading = type(module_class.__name__, (_Loading, module_class), {"__module__": module_class.__module__})
    module = loading.load_from_checkpoint(path, **options)  # type: ignore[attr-defined]
    module.__class__ = module_class
    if (finetuned := module.__dict__.pop("_finetuned", None)) is not None:
        pack_finetuned(module, finetuned)
    return module
