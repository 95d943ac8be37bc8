"""Which kernel multiplies by each packed layer of a model, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..tools.kinds import checked_kinds
from .inspection import packed_layers
from .kernels import (
    AUTO,
    PLAIN,
    Outcome,
    check_kernel_name,
    forget,
    prepared_for,
)
from .kernels.registry import warn_once
from .linear import PackedLinear


@dataclass(frozen=True)
class KernelChoice:
    """What multiplies by one layer's weight.

    Attributes:
        layer: Its qualified name.
        kernel: Name of the kernel, or ``"plain"``.
        why: Why the kernels that were tried before cannot be used, or why none was tried; empty if the first could.
        bytes: What the kernel keeps in memory beside the stored weight; 0 where it shares that of an earlier layer.
    """

    layer: str
    kernel: str
    why: str
    bytes: int

    def __str__(self) -> str:
        """Return one line."""
        cost = f", {self.bytes:,} bytes in memory" if self.bytes else ""
        return f"{self.layer}: {self.kernel}{cost}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class KernelChoices:
    """What multiplies by the packed layers of a model.

    Attributes:
        choices: One for each packed layer, in the order of the model.
    """

    choices: tuple[KernelChoice, ...]

    def __getitem__(self, layer: str) -> KernelChoice:
        """Return the choice of a layer."""
        return next(choice for choice in self.choices if choice.layer == layer)

    @property
    def bytes(self) -> int:
        """Bytes that kernels keep in memory beside the stored weights; they are never saved."""
        return sum(choice.bytes for choice in self.choices)

    def __str__(self) -> str:
        """Return one line for each layer, and the total."""
        return "\n".join([*map(str, self.choices), f"in all {self.bytes:,} bytes beside the stored weights"])


@checked_kinds
def use_kernels(model: nn.Module, kernel: str = AUTO) -> KernelChoices:
    """Choose what multiplies by the weights of packed Linear layers, in place, and prepare it.

    The choice stays with the layers when the model is copied, pickled, cast or moved: where they are used, the
    kernel that can be used there is. Outputs differ from those of the plain path by the order of sums alone. A
    kernel that cannot be used is named with the reason in one warning, and the layer is computed the plain way.

    Args:
        model: A packed model.
        kernel: ``"auto"``: the fastest that takes the layer on its device and in its type. ``"auto-round"`` (CPU,
            extra ``cpu-kernels``), ``"torch-int4"`` and ``"torch-int8"`` (CPU, bfloat16), ``"humming"`` (CUDA, extra
            ``cuda-kernels``): that one alone. ``"plain"``: dequantize at each call, or once with `set_memory`.

    Returns:
        What was chosen for each layer, why, and its cost in bytes of memory.

    Raises:
        ValueError: If there is no kernel of that name, or no packed layer.

    Example:
        >>> from lightning_mpq.modules import pack_model
        >>> from lightning_mpq import BitPolicy, WeightScheme
        >>> net = nn.Sequential(nn.Linear(8, 4))
        >>> floats = pack_model(net, BitPolicy({"0": WeightScheme(bits=3)}))
        >>> print(use_kernels(net, "plain"))
        0: plain
        in all 0 bytes beside the stored weights
    """
    check_kernel_name(kernel)
    layers = packed_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no packed layer to choose a kernel for; quantize it first.")
    for layer in layers.values():
        if isinstance(layer, PackedLinear) and not layer.packed_codes.is_meta:
            forget(layer.matrix())
    seen: set[int] = set()
    choices = []
    for name, layer in layers.items():
        if not isinstance(layer, PackedLinear):
            reason = f"kernels multiply Linear layers, and this is {type(layer).__name__}"
            choices.append(KernelChoice(name, PLAIN, "" if kernel == PLAIN else reason, 0))
            continue
        layer.kernel_choice = kernel
        outcome, why = _prepare(layer, kernel)
        weight = id(outcome.prepared)
        cost = outcome.prepared.nbytes if outcome.prepared is not None and weight not in seen else 0
        seen.add(weight)
        choices.append(KernelChoice(name, outcome.kernel, why, cost))
    return KernelChoices(tuple(choices))


def _prepare(layer: PackedLinear, kernel: str) -> tuple[Outcome, str]:
    """Return what a kernel makes of a layer's weight, and the reason against it in words."""
    nothing = Outcome(None, {})
    if layer.packed_codes.is_meta:
        return nothing, "the weight is on the meta device"
    if kernel == PLAIN:
        return nothing, ""
    if layer.dense_weight is not None:
        return nothing, 'it keeps its dequantized weight, memory="fast"'
    with torch.no_grad():
        outcome = prepared_for(layer.matrix(), kernel, layer.weight_dtype, quiet=True)
    if outcome.prepared is None:
        warn_once(outcome)
    return outcome, outcome.why
