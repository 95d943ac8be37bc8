"""Small random Taylor models that the allocation tests share."""

import numpy as np
import torch

from lightning_mpq.candidates import make_candidates
from lightning_mpq.curvature.model import TaylorModel
from lightning_mpq.groups import LayerGroup


def make_taylor(groups=4, bits=range(2, 6), seed=0, indefinite=False, scale=1.0, names=None, errors=False, **fields):
    """A random Taylor model: perturbations shrink by 2 per bit and share a few directions between groups."""
    random = np.random.default_rng(seed)
    names = names or [f"block{i // 2}.layer{i}" for i in range(groups)]
    shapes = [(int(random.integers(2, 9)), int(random.integers(3, 40))) for _ in names]
    layer_groups = tuple(LayerGroup(name, (name,), (shape,)) for name, shape in zip(names, shapes, strict=True))
    candidates = make_candidates(layer_groups, bits=bits)
    width = np.array([c.scheme.bits for c in candidates])
    size = np.array([next(g.weight_count for g in layer_groups if g.name == c.group) for c in candidates])
    noise = random.normal(size=(24, len(candidates))) + 2 * random.normal(size=(24, 1))
    curvature = noise.T @ noise / 24
    if indefinite:
        bump = random.normal(size=curvature.shape)
        curvature += 2 * (bump + bump.T)
    step = np.sqrt(size) * 2.0 ** (2 - width)
    curvature *= np.outer(step, step) * scale
    gradient = random.normal(size=len(candidates)) * step**2 * scale if indefinite else np.zeros(len(candidates))
    if errors:
        fields["gradient_error"] = torch.full((len(candidates),), 0.1 * scale)
        fields["curvature_error"] = torch.tensor(np.outer(step, step) * 0.3 * scale)
    return TaylorModel(
        layer_groups,
        candidates,
        torch.tensor(gradient),
        torch.tensor((curvature + curvature.T) / 2),
        fields.pop("estimator", "hessian"),
        "task",
        24,
        **fields,
    )
