"""Targets by name."""

from __future__ import annotations

from ..tools.checks import check_one_of, shown
from .base import Target
from .llama_cpp import LlamaCpp
from .onnxruntime import OnnxRuntime
from .openvino import OpenVino
from .torch import Torch
from .vllm import Vllm

TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in (Torch, OnnxRuntime, OpenVino, Vllm, LlamaCpp)}
"""Name to class."""


def target_named(target: str | Target) -> Target:
    """Return the target of a name, or the one that was given.

    Raises:
        TypeError: If it is neither a name nor a target.
        ValueError: If there is none of that name.
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, str):
        raise TypeError(f"target must be a name or an instance of a subclass of Target, got {shown(target)}.")
    check_one_of("target", target, TARGETS)
    return TARGETS[target]()
