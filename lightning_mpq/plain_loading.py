"""The place that checkpoints name: Lightning imports ``lightning_mpq.plain_loading.instantiate`` by this path."""

from .trainer.checkpoints.instantiator import instantiate

__all__ = ["instantiate"]
