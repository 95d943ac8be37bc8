"""Fine-tuning after quantization: fake quantization in place, learned scales, distillation from the float model."""

from .batchnorm import freeze_batchnorm, unfreeze_batchnorm
from .distillation import DistillationLoss, with_extra_loss
from .fake_quantization import fake_quantize
from .handle import FakeQuantization
from .layer import FakeQuantizedLayer, fake_quantized_layers
from .teacher import Teacher

__all__ = [
    "DistillationLoss",
    "FakeQuantization",
    "FakeQuantizedLayer",
    "Teacher",
    "fake_quantize",
    "fake_quantized_layers",
    "freeze_batchnorm",
    "unfreeze_batchnorm",
    "with_extra_loss",
]
