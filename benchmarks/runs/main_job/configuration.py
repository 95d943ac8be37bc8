"""What a run of the main job asks of the configuration that users have too."""

from __future__ import annotations

import argparse

from ...problems.made_up_images import made_up_images
from ..arguments import QUICK as QUICK_FOLDER

QUICK = ["trainer.max_epochs=1", "callbacks.mpq.calibration_batches=1"]
QUICK += ["model.network.depth=8", "model.network.widths=[8,16,32]", "candidates.bits=[2,3,4]"]
QUICK += [f"+trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
"""Overrides of a quick run: an epoch of two batches, the layers of `resnet8.yaml`, three widths."""


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Return what differs from the configuration of the package."""
    root = arguments.root
    if root is None and arguments.quick and arguments.experiment == "fashion_mnist":
        root = made_up_images(QUICK_FOLDER / "images")
    return [
        f"experiment={arguments.experiment}",
        f"cache_dir={arguments.cache}",
        *([] if root is None else [f"data.root={root}"]),
        *(QUICK if arguments.quick else []),
    ]
