"""The networks that benchmarks train on Fashion-MNIST, their recipes, and the images they are measured on.

Training takes minutes, so weights are kept and shared by all benchmarks; several may be trained beforehand:

    python -m benchmarks.networks --root DIR --networks resnet20 mobilenet --seeds 0 1 2
"""

from .fashion_mnist import CALIBRATION, Images, calibration, data_module, held_out, test_split
from .trained import EPOCHS, NETWORKS, trained, untrained_module, weights_file

__all__ = [
    "CALIBRATION",
    "EPOCHS",
    "NETWORKS",
    "Images",
    "calibration",
    "data_module",
    "held_out",
    "test_split",
    "trained",
    "untrained_module",
    "weights_file",
]
