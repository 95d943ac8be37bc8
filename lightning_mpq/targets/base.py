"""What a target is: a runtime's menu of schemes, which layers it ties, what it stores, and how its file is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from ..export.example_inputs import ExampleInputs
from ..export.extras import require
from ..export.outputs import relative_error
from ..modules.inspection import shape_of
from ..schemes import InputScheme, LayerScheme, Rounding, WeightScheme


class StoredLayer(NamedTuple):
    """A layer's weight as it is found in a file.

    Attributes:
        bits: Bits that hold each code there.
        bytes: Bytes of codes, scales and zero points.
        sha256: Hash of these bytes.
    """

    bits: int
    bytes: int
    sha256: str


class Target:
    """A runtime that a policy is made for, an instance of which goes to ``MixedPrecisionQuantization(target=...)``.

    A target of your own says in `why_not` what its layers may have, in `ties` which of them must agree, and in
    `stored_bits` what that costs; what it does not say is as in our own packed layers. `write`, `read` and `outputs`
    are for those that have a file, which `export_for` writes and `verify` checks.

    Attributes:
        name: Its short name.
        extra: The extra of this package that installs what `write` and `outputs` need; None for nothing.
        packages: Modules of that extra that must be there.
        ending: Of its files' names; empty where it writes a folder.
        tolerance: Largest difference between the runtime's outputs and ours, relative to the largest output, that
            rounding within the runtime explains.

    Example:
        Convolutions of 4 or 8 bits, all of one width:

        >>> class Npu(Target):
        ...     name = "npu"
        ...
        ...     def why_not(self, layer, scheme):
        ...         return None if scheme.bits in (4, 8) else "it computes with 4 or 8 bits"
        ...
        ...     def ties(self, model):
        ...         return [[name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]]
        >>> Npu().why_not(nn.Linear(2, 2), WeightScheme(3))
        'it computes with 4 or 8 bits'
    """

    name: ClassVar[str]
    extra: ClassVar[str | None] = None
    packages: ClassVar[tuple[str, ...]] = ()
    ending: ClassVar[str] = ""
    tolerance: ClassVar[float] = 1e-4

    def why_not(self, layer: nn.Module, scheme: WeightScheme) -> str | None:
        """Return why a layer cannot have a scheme; None if it can.

        Args:
            layer: A layer, or a view of a weight that its module holds under another name (``ParameterView``);
                packed or not, it is an instance of its type.
            scheme: The scheme.
        """
        return None

    def why_not_inputs(self, layer: nn.Module, scheme: InputScheme) -> str | None:
        """Return why the inputs of a layer cannot be quantized so; None if they can."""
        return None

    def why_not_pair(self, layer: nn.Module, weight: WeightScheme, inputs: InputScheme) -> str | None:
        """Return why a layer cannot have a weight and inputs at once, each of which it can have; None if it can."""
        return None

    def schemes(self, rounding: Rounding) -> Sequence[WeightScheme] | None:
        """Return the schemes that it offers in the place of widths on our grids; None for those.

        Args:
            rounding: How they are to be rounded.
        """
        return None

    def ties(self, model: nn.Module) -> Sequence[Sequence[str]]:
        """Return sets of names of layers that must have one scheme, as those do that the runtime fuses."""
        return ()

    def stored_bits(self, layer: nn.Module, scheme: WeightScheme) -> int:
        """Return the bits of codes, scales and zero points of a layer in the target's file."""
        return scheme.stored_bits(*shape_of(layer))

    def stored_bits_with_inputs(self, layer: nn.Module, scheme: LayerScheme) -> int:
        """Return `stored_bits` where the inputs count too: a file may hold a weight otherwise if they are quantized."""
        return self.stored_bits(layer, scheme.weight)

    def is_slow(self, layer: nn.Module, scheme: LayerScheme) -> bool:
        """Tell whether the runtime computes a layer as slowly as in float by this scheme, quantized inputs and all.

        Such a scheme is offered only where none of one bit less is faster and takes no more bytes.
        """
        return False

    @property
    def has_file(self) -> bool:
        """Whether `write` is defined."""
        return type(self).write is not Target.write

    def require_packages(self) -> None:
        """Import what the target needs.

        Raises:
            ImportError: If a package is not installed; the extra is named.
        """
        for package in self.packages:
            assert self.extra is not None
            require(self.extra, package, f"The target {self.name!r}")

    def write(self, model: nn.Module, path: Path, inputs: ExampleInputs) -> None:
        """Write a packed model whose layers all are on the menu.

        Raises:
            TypeError: If the target has no file.
        """
        raise TypeError(
            f"The target {self.name!r} says what its layers may have, and not how a file is written: define write() "
            "and read(), or inherit from a target that has them, such as targets.OnnxRuntime."
        )

    def read(self, path: Path) -> Mapping[str, StoredLayer]:
        """Return what a file holds of each layer, of layers that share a weight under one of their names.

        Raises:
            CorruptModelError: If it cannot be read.
        """
        raise TypeError(f"The target {self.name!r} has no file to read.")

    def outputs(self, path: Path, batches: Sequence[ExampleInputs], model: nn.Module | None) -> list[list[Tensor]]:
        """Return what the runtime computes by a file.

        Args:
            path: The file.
            batches: The inputs.
            model: A packed model of the same architecture, for runtimes that need one; None if there is none.

        Raises:
            NotImplementedError: If it cannot be computed without a model; the message says so.
        """
        raise NotImplementedError(f"The target {self.name!r} cannot be run here")

    def error(
        self,
        path: Path,
        batches: Sequence[ExampleInputs],
        expected: Sequence[Sequence[Tensor]],
        model: nn.Module | None,
    ) -> float:
        """Return the largest difference between the runtime's outputs and ours, relative to the largest output.

        Raises:
            ValueError: If it is more than ``tolerance``.
            NotImplementedError: As `outputs` does.
        """
        found = self.outputs(path, batches, model)
        return self.tolerated(relative_error(own, other, self.name) for own, other in zip(found, expected, strict=True))

    def tolerated(self, errors: Iterable[float]) -> float:
        """Return the largest of some relative errors of outputs.

        Raises:
            ValueError: If it is more than ``tolerance``.
        """
        worst = max(errors)
        if not worst <= self.tolerance:
            raise ValueError(
                f"{self.name} and PyTorch differ by {worst:.3g} of the largest output, more than {self.tolerance:g}"
            )
        return worst

    def __repr__(self) -> str:
        """Return its name."""
        return f"<target {self.name}>"
