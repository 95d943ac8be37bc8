"""A use of a layer in pieces whose scores make up its own, so that no more is made of a large weight than they take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from ...network.layer_kinds import kind_of
from .perturbation import Perturbations


class Piece(NamedTuple):
    """What `layer_scores` takes.

    Attributes:
        columns: Of the candidates.
        inputs: What the layer was called on; of a table, places among the perturbed rows.
        output_gradient: Of the rows that are perturbed.
        perturbations: Of all rows, or some.
    """

    columns: slice
    inputs: Tensor
    output_gradient: Tensor
    perturbations: Tensor


def pieces(
    perturbations: Perturbations, layer: str, inputs: Tensor, output_gradient: Tensor, rows: slice | None
) -> Iterator[Piece]:
    """Yield the pieces of a use: of a large matrix some rows at a time, of a large table those that were looked up.

    Args:
        perturbations: All candidates.
        layer: Name of the layer.
        inputs: What it was called on.
        output_gradient: Shaped like what it returned.
        rows: Which rows of the weight were used, where these are known to be some; None for all.
    """
    kind = kind_of(perturbations.modules[layer])
    operation = None if kind is None or not perturbations.is_large(layer) else kind.operation
    if operation == "lookup":
        used, places = inputs.unique(return_inverse=True)
        for columns, deltas in perturbations.of_rows(layer, used):
            yield Piece(columns, places, output_gradient, deltas)
    elif operation == "linear" and rows is None:
        for some, deltas in perturbations.by_rows(layer):
            yield Piece(perturbations.columns[layer], inputs, output_gradient[..., some], deltas)
    else:
        for columns, deltas in perturbations.chunks(layer):
            yield Piece(columns, inputs, output_gradient, deltas)
