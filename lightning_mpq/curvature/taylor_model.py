"""The second-order Taylor model of the loss over all candidates, and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..groups.candidates import Candidate
from ..groups.choices import Choices
from ..groups.groups import LayerGroup
from ..policy import BitPolicy
from ..schemes import LayerScheme, WeightScheme
from ..tools.finite import all_finite
from .estimators.base import UNITS, Loss
from .prediction_error import block_error
from .serialization import load_fields, malformed, save_fields


class Prediction(NamedTuple):
    """A predicted change of the loss.

    Attributes:
        value: Predicted loss after quantization minus float loss.
        gradient: Its first-order part.
        within: Its second-order part from each group alone.
        between: Its second-order part from pairs of groups.
        standard_error: Standard error of ``value`` over samples (and draws); None if unknown.
        between_error: That of ``between``; None if unknown.
    """

    value: float
    gradient: float
    within: float
    between: float
    standard_error: float | None = None
    between_error: float | None = None


@dataclass(frozen=True)
class TaylorModel:
    """``dL(x) = a.x + x.G.x / 2`` for a one-hot choice x of one candidate per group.

    Attributes:
        groups: The groups, in order.
        candidates: The K candidates, grouped in the order of ``groups``.
        gradient: a, shape [K], float64: loss per full step to the candidate. Zero for the divergence.
        curvature: G, shape [K, K], float64, symmetric: ``G_ij = D_i.H.D_j``.
        estimator: How the curvature was computed: "fisher", "hessian", ...
        loss: What is modelled: "divergence" (from the float model, in nats per sample) or "task".
        samples: How many samples the sums ran over.
        gradient_error: Standard errors of ``gradient``, shape [K].
        curvature_error: Standard errors of ``curvature``, shape [K, K].
        float_bytes: Bytes of everything in the model that no candidate touches.
        fingerprint: Hash of weights, candidates, data and settings; equal means the same model.
        settings_hash: The part of the fingerprint that is not data.
        batch_hashes: One hash for each batch.
        sums: Sums over batches that all values follow from; they make models `merge`. Those over blocks of the data
            (``blocks.``) take up to 16 K^2 numbers of 4 bytes.

    Example::

        taylor = mpq.profile(model, batches)
        prediction = taylor.predict(policy)      # of any policy that chooses among its candidates, profiled or not
        prediction.value, prediction.between, prediction.standard_error
        taylor.save("network.taylor"), mpq.TaylorModel.load("network.taylor")
    """

    groups: tuple[LayerGroup, ...]
    candidates: tuple[Candidate, ...]
    gradient: Tensor
    curvature: Tensor
    estimator: str
    loss: Loss
    samples: int
    gradient_error: Tensor | None = None
    curvature_error: Tensor | None = None
    float_bytes: int = 0
    fingerprint: str = ""
    settings_hash: str = ""
    batch_hashes: tuple[str, ...] = ()
    sums: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)
    choices: Choices = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check shapes and values once, so that all later code can rely on them."""
        object.__setattr__(self, "choices", Choices(self.groups, self.candidates, self.float_bytes))
        count = len(self.candidates)
        if tuple(self.gradient.shape) != (count,) or tuple(self.curvature.shape) != (count, count):
            raise ValueError(
                f"Expected a gradient of shape [{count}] and a curvature of shape [{count}, {count}] for {count} "
                f"candidates, got {list(self.gradient.shape)} and {list(self.curvature.shape)}."
            )
        for name in ("gradient", "curvature"):
            values = getattr(self, name)
            if not all_finite(values):
                bad = int((~torch.isfinite(values)).nonzero()[0][0])
                raise ValueError(f"The {name} is not finite at candidate {self.choices.describe(bad)}.")
        for name, shape in (("gradient_error", (count,)), ("curvature_error", (count, count))):
            if (errors := getattr(self, name)) is not None and tuple(errors.shape) != shape:
                raise ValueError(f"Expected {name} of shape {list(shape)}, got {list(errors.shape)}.")
        scale = float(self.curvature.abs().max()) if count else 0.0
        if float((self.curvature - self.curvature.T).abs().max() if count else 0.0) > 1e-5 * scale:
            raise ValueError("The curvature is not symmetric beyond rounding; pass (G + G.T) / 2 if that is meant.")
        object.__setattr__(self, "gradient", self.gradient.detach().double().cpu())
        curvature = self.curvature.detach().double().cpu()
        object.__setattr__(self, "curvature", (curvature + curvature.T) / 2)

    def __repr__(self) -> str:
        """Say what was modelled, how, and on how much data."""
        return (
            f"TaylorModel({self.loss} by {self.estimator}, {len(self.groups)} groups, "
            f"{len(self.candidates)} candidates, {self.samples} samples)"
        )

    @property
    def unit(self) -> str:
        """What a predicted loss is counted in, such as "nats per sample"."""
        return UNITS[self.loss]

    def indices(self, policy: Mapping[str, LayerScheme | WeightScheme]) -> list[int]:
        """Return the candidate of each group, in order, that a policy chooses.

        Raises:
            ValueError: If the policy misses a group or chooses what is not a candidate.
        """
        return self.choices.indices(policy)

    def policy(self, indices: Sequence[int]) -> BitPolicy:
        """Return the policy that chooses the given candidates, one per group, in order."""
        return self.choices.policy(indices)

    def predict(self, policy: Mapping[str, LayerScheme | WeightScheme]) -> Prediction:
        """Predict the change of the loss under a policy, split into its three parts, with its standard error."""
        chosen = self.indices(policy)
        gradient = float(self.gradient[chosen].sum())
        rows = torch.tensor(chosen)
        block = self.curvature[rows[:, None], rows]
        within = float(block.diagonal().sum()) / 2
        total = float(block.sum()) / 2
        between_error = block_error(self.sums or {}, None, self.curvature, chosen, between=True)
        error = self.prediction_error(policy)
        return Prediction(gradient + total, gradient, within, total - within, error, between_error)

    def prediction_error(self, policy: Mapping[str, LayerScheme | WeightScheme]) -> float | None:
        """Return the standard error of `predict`, None if unknown.

        Entries from one set of samples err together, so that it comes from what blocks of the data predict one by one
        (see `block_error`; 8 or 16 blocks, hence itself within 20 to 30 %). A model without blocks, made by hand for
        instance, falls back to `entrywise_error`.
        """
        slope = self.gradient if self.loss == "task" else None
        found = block_error(self.sums or {}, slope, self.curvature, self.indices(policy))
        return self.entrywise_error(policy) if found is None else found

    def entrywise_error(self, policy: Mapping[str, LayerScheme | WeightScheme]) -> float | None:
        """Return the standard error of `predict` as if the entries of a and G erred independently, None if unknown.

        They do not, so this is a scale and no standard error; but it is a sum over pairs, which a solver can use.
        """
        if self.gradient_error is None or self.curvature_error is None:
            return None
        chosen = self.indices(policy)
        block = self.curvature_error[chosen][:, chosen]
        variance = float(self.gradient_error[chosen].square().sum()) + float(block.square().sum()) / 2
        return sqrt(variance)

    def save(self, path: str | Path) -> Path:
        """Write the model to one safetensors file, whole or not at all; see `load`."""
        return save_fields(vars(self), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> TaylorModel:
        """Read a model written by `save`.

        Raises:
            FileNotFoundError: If there is no such file.
            CorruptModelError: If the file is truncated, damaged, or not a Taylor model.
        """
        fields = load_fields(Path(path))
        try:
            return cls(**fields)
        except Exception as error:  # which one, depends on the byte that is wrong
            raise malformed(Path(path), error) from error
