"""Fine-tuning behind quantization: fake quantization in place, learned scales, distillation from the float model."""

from .distillation import DistillationLoss, with_extra_loss
from .fake_quantization import FakeQuantization, fake_quantize
from .layer import FakeQuantizedLayer, fake_quantized_layers
from .teacher import Teacher

__all__ = [
    "DistillationLoss",
    "FakeQuantization",
    "FakeQuantizedLayer",
    "Teacher",
    "fake_quantize",
    "fake_quantized_layers",
    "with_extra_loss",
]
