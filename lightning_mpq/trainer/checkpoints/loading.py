"""`load`: packed models from what `save` wrote, or from Trainer checkpoints."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from ...errors import CorruptModelError
from ...export.safetensors import load_folder
from ...modules import packed_layers
from ...network.compiled import uncompiled
from ...tools.files import damage
from ...tools.kinds import checked_kinds
from .checkpoint import load_checkpoint, read_packed
from .mixin import load_from_checkpoint

_ARGUMENTS = re.compile(r"required positional argument|keyword.* argument|positional arguments? but|makes an instance")
"""What a TypeError says where a class was called with the wrong arguments."""


@checked_kinds
def load(path: str | os.PathLike[str], model: nn.Module | type[nn.Module], **options: Any) -> Any:
    """Load a packed model into a float model of the same architecture, in place and without rounding anything.

    Names, shapes and types of all tensors and their hashes (for a file, its checksums) are checked before the model is
    touched. It may be on the meta device, and what is loaded is then on the CPU. A checkpoint that was written during
    fine-tuning gives the packed model that packing would have given then.

    Args:
        path: A folder that `save` wrote, or a file that the Trainer saved after quantization or during fine-tuning.
        model: A float model of the architecture that was quantized, compiled or not, in the type that it was saved in;
            on an error it is left as it was. A LightningModule makes what it makes in ``configure_model`` first. For a
            file, the class of a LightningModule will do: an instance is made as Lightning's ``load_from_checkpoint``
            makes it, from a checkpoint of a float model too.
        options: For a class: what Lightning's ``load_from_checkpoint`` takes, arguments of the class included.

    Returns:
        The model, packed.

    Raises:
        CorruptModelError: If something is missing, damaged or foreign, or the model is of another architecture.
        TypeError: If the model has packed layers already, a class is given for a folder, or with other arguments than
            it takes.

    Example::

        model = mpq.load("packed", Net())
        model = mpq.load("last.ckpt", Net)
    """
    path = Path(path)
    if not path.exists():
        raise CorruptModelError(f"There is no saved model at {path}: no folder of save(), and no checkpoint.")
    if not path.is_dir():
        try:
            found = damage(path)
        except (OSError, ValueError) as error:
            raise CorruptModelError(f"{path} cannot be read: {error}") from error
        if found is not None:
            raise CorruptModelError(f"{path} is damaged: {found}. Take another copy of the file.")
    if isinstance(model, type):
        if path.is_dir():
            raise TypeError(
                f"{path} is a folder, which does not tell how to make a {model.__name__}; give an instance of it."
            )
        return _instance(model, path, options)
    if options:
        raise TypeError(f"{', '.join(options)} are for making an instance of a class, and a model was given.")
    own = uncompiled(model)
    if isinstance(own, L.LightningModule) and is_overridden("configure_model", own):
        own.configure_model()  # as Lightning's load_from_checkpoint does; layers may be made there only
    if packed := packed_layers(own):
        raise TypeError(f"{type(own).__name__} is packed already (layer {next(iter(packed))!r}); give a float model.")
    if path.is_dir():
        load_folder(path, own)
    else:
        load_checkpoint(path, own)
    return model


def _instance(module_class: type[nn.Module], path: Path, options: dict[str, Any]) -> Any:
    """Make an instance from a checkpoint, with one kind of error for whatever may stand in the file.

    Raises:
        CorruptModelError: If the file is no checkpoint, or does not fit the class.
        TypeError: If the class is no LightningModule, or takes other arguments.
    """
    try:
        return load_from_checkpoint(module_class, path, **options)
    except (torch.OutOfMemoryError, CorruptModelError):
        raise
    except Exception as error:  # which one, depends on the byte that is wrong
        if isinstance(error, TypeError) and _ARGUMENTS.search(str(error)):
            raise
        if isinstance(error, KeyError) and error.args[0] in ("pytorch-lightning_version", "state_dict"):
            read_packed(path)  # nothing that Lightning wrote: says what it is
        raise CorruptModelError(f"{path} cannot be loaded into {module_class.__name__}: {error}") from error
