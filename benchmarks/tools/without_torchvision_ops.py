"""Lets torchvision be imported beside a torch for processors: PyPI's is built for CUDA, and misses its operators there.

Import this before what imports torchvision. None of its operators is called.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
