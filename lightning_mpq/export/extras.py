"""Optional packages: asked for when they are needed, and missed with a sentence that says what to install."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(extra: str, module: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        extra: The extra of this package that installs it.
        module: Name to import.
        purpose: What it is needed for, to begin the message with.

    Raises:
        ImportError: If it is not installed; the message names the extra.

    Example:
        >>> require("onnx", "no_such_package", "Exporting to ONNX")
        Traceback (most recent call last):
        ImportError: Exporting to ONNX needs the package 'no_such_package': pip install "lightning_mpq[onnx]".
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        raise ImportError(
            f'{purpose} needs the package {package!r}: pip install "lightning_mpq[{extra}]".', name=error.name
        ) from error
