"""Crops of the pictures that scikit-image and scikit-learn bring along."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

_PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "immunohistochemistry", "hubble_deep_field")
_MEAN, _SPREAD = 127 / 255, 128 / 255  # what the Lite networks were trained with


def crops(count: int) -> Tensor:
    """Return random crops of sample pictures, normalised as the network expects, [count, 3, 224, 224]."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    pictures = [getattr(data, name)() for name in _PHOTOS] + list(load_sample_images().images)
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        picture = torch.tensor(np.ascontiguousarray(pictures[number % len(pictures)][..., :3])).permute(2, 0, 1) / 255
        side = int(random.integers(160, min(picture.shape[1:]) + 1))
        top, left = (int(random.integers(0, length - side + 1)) for length in picture.shape[1:])
        crop = picture[None, :, top : top + side, left : left + side]
        crop = nn.functional.interpolate(crop, size=(224, 224), mode="bilinear", antialias=True)[0]
        made.append(crop.flip(2) if random.random() < 0.5 else crop)
    return (torch.stack(made) - _MEAN) / _SPREAD
