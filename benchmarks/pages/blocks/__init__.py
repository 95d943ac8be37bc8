"""What pages say about each benchmark, as Markdown made from its committed results."""

from __future__ import annotations

from ..filling import Write
from . import (
    activations,
    allocation,
    compression,
    fidelity,
    finetune,
    held_out,
    inference,
    main_job,
    near_optimum,
    noise,
    peers,
    pretrained,
    repair,
    scale,
    soak,
    targets,
)

BLOCKS: dict[str, tuple[str, Write]] = {
    "main_job": ("main_job-fashion_mnist", main_job.block),
    "compression": ("compression", compression.block),
    "repair": ("repair", repair.block),
    "activations": ("activations-resnet20", activations.block),
    "activations_mobilenet": ("activations-mobilenet", activations.block),
    "activations_short": ("activations-resnet20", activations.in_short),
    "pretrained": ("pretrained", pretrained.block),
    "pretrained_short": ("pretrained", pretrained.in_short),
    "pretrained_times": ("pretrained", pretrained.times),
    "pretrained_without": ("pretrained", pretrained.switched_off),
    "peers": ("peers", peers.block),
    "peers_short": ("peers", peers.in_short),
    "held_out": ("held_out", held_out.block),
    "pairs": ("held_out", held_out.pairs),
    "near_optimum": ("near_optimum", near_optimum.block),
    "noise": ("noise", noise.block),
    "allocation": ("allocation", allocation.block),
    "fidelity": ("fidelity", fidelity.block),
    "finetune": ("finetune", finetune.block),
    "inference": ("inference", inference.block),
    "scale": ("scale", scale.block),
    "targets_onnx": ("targets", targets.onnx),
    "targets_openvino": ("targets", targets.openvino),
    "targets_classes": ("targets", targets.classes),
    "targets_vllm": ("targets", targets.loaded),
    "targets_ggml": ("targets", targets.ggml),
    "targets_language": ("targets", targets.language),
    "soak": ("soak", soak.block),
}
"""Name of the markers to the result file and the function that writes what stands between them."""
