"""What makes up for rounding once a policy is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..tools.checks import shown


@dataclass(frozen=True)
class RepairOptions:
    """What makes up for rounding once a policy is chosen.

    Attributes:
        sequential: Whether layers are rounded one after the other, each so that it comes closest to the float model's
            outputs with the layers before it rounded already; layers whose scheme rounds to nearest are not.
        batchnorm: Whether BatchNorm statistics are measured again with the quantized weights.
        biases: Whether biases are shifted until mean outputs are those of the float model, layer by layer. "auto":
            where there is no BatchNorm that makes up for them.

    Example::

        mpq.quantize(model, policy, batches, repair=mpq.RepairOptions(batchnorm=False))
    """

    sequential: bool = True
    batchnorm: bool = True
    biases: Literal["auto"] | bool = "auto"

    def __post_init__(self) -> None:
        """Refuse what is neither on nor off."""
        for name in ("sequential", "batchnorm", "biases"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (name, value) != ("biases", "auto"):
                raise ValueError(f"{name} must be true or false{' or auto' * (name == 'biases')}, got {shown(value)}.")
