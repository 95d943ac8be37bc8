"""Runtimes: what each can hold, what that costs in its file, how the file is written, and a check that it was."""

from .base import StoredLayer, Target
from .exporting import export_for
from .file_size import with_file_rest
from .llama_cpp import LlamaCpp
from .llama_recipe import llama_recipe
from .menu import offer
from .onnxruntime import OnnxRuntime
from .openvino import OpenVino
from .registry import target_named
from .torch import Torch
from .verification import Verification, verify
from .vllm import Vllm

__all__ = [
    "LlamaCpp",
    "OnnxRuntime",
    "OpenVino",
    "StoredLayer",
    "Target",
    "Torch",
    "Verification",
    "Vllm",
    "export_for",
    "llama_recipe",
    "offer",
    "target_named",
    "verify",
    "with_file_rest",
]
