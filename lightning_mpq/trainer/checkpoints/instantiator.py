"""Lightning's own ``Net.load_from_checkpoint(path)`` on checkpoints with packed layers, for classes without our mixin.

A checkpoint of Lightning may name the function that makes the instance to load into; LightningCLI uses it for nested
classes. Checkpoints of packed models name one that replaces layers by empty packed ones before the tensors are loaded.
Lightning calls such a function only if it is on a list of trusted ones, to which importing this package adds ours.
Where the package is not imported, Lightning refuses the checkpoint in a sentence that names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.core import saving

from ...modules import packed_layers
from .checkpoint import make_ready

Module = TypeVar("Module", bound=L.LightningModule)
INSTANTIATOR_KEY = "_instantiator"
"""Lightning's own key among the hyperparameters of a checkpoint."""
INSTANTIATOR = "lightning_mpq.plain_loading.instantiate"
"""Written into checkpoints, so that it stays whatever moves."""


def let_lightning_load(checkpoint: dict[str, Any], module: L.LightningModule) -> None:
    """Name `instantiate` in a checkpoint about to be written, if it holds packed layers and the place is free.

    The place is taken where LightningCLI made the module, and unknown where hyperparameters are an object of
    OmegaConf or one argument of the class; `load_from_checkpoint` of this package serves all of them.
    """
    if not packed_layers(module):
        return
    hyperparameters = checkpoint.get(module.CHECKPOINT_HYPER_PARAMS_KEY, {})
    argument = checkpoint.get(module.CHECKPOINT_HYPER_PARAMS_NAME)
    if isinstance(hyperparameters, dict) and argument not in inspect.signature(type(module).__init__).parameters:
        checkpoint[module.CHECKPOINT_HYPER_PARAMS_KEY] = {INSTANTIATOR_KEY: INSTANTIATOR, **hyperparameters}


def instantiate(module_class: type[Module], arguments: Mapping[str, Any]) -> Module:
    """Make an instance that replaces its layers by empty packed ones when its checkpoint is about to be loaded."""
    module = module_class(**arguments)
    module.__dict__["on_load_checkpoint"] = partial(_make_ready_once, module)
    return module


def _make_ready_once(module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    del module.__dict__["on_load_checkpoint"]
    make_ready(module, checkpoint)
    module.on_load_checkpoint(checkpoint)


trusted: set[str] = getattr(saving, "_ALLOWED_INSTANTIATORS", set())  # releases without the list call any function
trusted.add(INSTANTIATOR)
