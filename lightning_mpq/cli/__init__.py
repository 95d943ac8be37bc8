"""The command ``lightning-mpq``."""

from .main import main

__all__ = ["main"]
