"""The verb `verify`: a file loaded in its own runtime, and compared with what was exported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..errors import CorruptModelError
from ..export.example_inputs import ExampleInputs, Examples
from ..export.outputs import outputs_of, relative_error
from ..network.compiled import uncompiled
from ..network.forward import device_of
from ..tools.kinds import checked_kinds
from .base import Target
from .record import Record, files_at
from .registry import TARGETS, target_named

_SAME_MODEL = 0.05
"""What part of the largest output PyTorch may differ from itself: on another machine or device, in half precision, or
where inputs are quantized and the last bit of a sum decides which code comes next."""


@dataclass(frozen=True)
class Verification:
    """What was found in a file.

    Attributes:
        path: The file or folder.
        target: Name of the target.
        layers: Packed layers that the file holds, all at their widths; those that share a weight count each.
        unused: Packed layers that are not in it, as the model does not use them.
        error: Largest difference between the runtime's outputs and ours, relative to the largest output; None if they
            could not be compared.
        file_bytes: Bytes of the file, or of all files in the folder, the record left out.
        promised_bytes: Bytes that were counted for codes, scales, zero points and what stays in float.
        not_compared: Why outputs were not compared; empty if they were.

    Example:
        >>> print(Verification(Path("m.onnx"), "onnxruntime", 211, (), 0.003, 71_243_003, 71_190_400))
        loaded 211 of 211 layers at their widths; outputs differ by 0.3 %; 71.24 MB in the file, 71.19 promised
    """

    path: Path
    target: str
    layers: int
    unused: tuple[str, ...]
    error: float | None
    file_bytes: int
    promised_bytes: int
    not_compared: str = ""

    def __str__(self) -> str:
        """Return it in one line."""
        total = self.layers + len(self.unused)
        loaded = f"loaded {self.layers} of {total} layers at their widths"
        if self.unused:
            loaded += f" (not used by the model: {', '.join(self.unused[:4])})"
        outputs = f"outputs not compared: {self.not_compared}"
        if self.error is not None:
            outputs = f"outputs differ by {100 * self.error:.2g} %"
        unit, divisor = ("MB", 1e6) if self.file_bytes >= 1e5 else ("bytes", 1)
        digits = 2 if unit == "MB" else 0
        sizes = f"{self.file_bytes / divisor:,.{digits}f} {unit} in the file"
        return f"{loaded}; {outputs}; {sizes}, {self.promised_bytes / divisor:,.{digits}f} promised"


@checked_kinds
def verify(
    path: str | os.PathLike[str],
    *,
    target: str | Target | None = None,
    model: nn.Module | None = None,
    example_inputs: Examples | ExampleInputs | None = None,
) -> Verification:
    """Load a file that `export_for` wrote in its own runtime, and compare it with what was exported.

    Widths, bytes and hash of every layer are read back; then the outputs are compared, on the inputs of the export
    with what the packed model computed then, or on others with what a model at hand computes.

    Args:
        path: The file or folder.
        target: The target, if it is one of your own; by default that of the file.
        model: The packed model, for other inputs, and for runtimes that cannot run a file without one.
        example_inputs: Other inputs, as ``forward`` takes them; they need ``model``.

    Returns:
        What was found; as text, one line.

    Raises:
        CorruptModelError: If a layer is missing, of another width, or not what was exported (it is named); if anything
            else in the file has changed; or if the runtime cannot load it, or computes something else.
        ImportError: If the runtime is not installed; the extra is named.
        TypeError: If the model does not take the inputs.
        ValueError: If inputs are given without a model, the model is another than was exported, or the target is not
            the one that the file was written for.
    """
    path, model = Path(path), None if model is None else uncompiled(model)
    record = Record.read(path)
    target = _target_of(record, path, target)
    if not path.exists():
        raise CorruptModelError(f"{path} is missing, though its record is there. Export again.")
    _compare_layers(record, target, path)
    _compare_files(record, path)
    batches, expected = record.batches, record.outputs
    if example_inputs is not None:
        if model is None:
            raise ValueError("To compare on other inputs, pass the packed model too: verify(path, model=..., ...).")
        _refuse_other(model, record, path)
        batches = [ExampleInputs.of(example_inputs)]
        expected = [outputs_of(model, batch) for batch in batches]
    error, why = None, ""
    try:
        error = target.error(path, batches, expected, model)
    except NotImplementedError as reason:
        why = str(reason)
    except ImportError:
        raise
    except Exception as reason:  # runtimes have types of their own
        raise CorruptModelError(f"{path} does not do in {target.name} what was exported: {reason}.") from reason
    return Verification(
        path,
        target.name,
        len(record.layers),
        tuple(record.unused),
        error,
        record.file_bytes,
        record.promised_bytes,
        why,
    )


def _refuse_other(model: nn.Module, record: Record, path: Path) -> None:
    """Refuse a model that computes something else on the inputs of the export than the one that was exported.

    Where a runtime rounds inputs itself, its outputs may be further from the model's than those of similar models.
    """
    own = [batch.map(lambda value: value.to(device_of(model))) for batch in record.batches]
    try:
        errors = [
            relative_error(outputs_of(model, batch), outputs, type(model).__name__)
            for batch, outputs in zip(own, record.outputs, strict=True)
        ]
    except (TypeError, ValueError) as error:  # other arguments, or outputs of other shapes
        raise ValueError(f"{_OTHER.format(path=path)}: {error}") from error
    if not (worst := max(errors, default=0.0)) <= _SAME_MODEL:
        raise ValueError(
            f"{_OTHER.format(path=path)}: on the inputs of the export its outputs differ by {100 * worst:.2g} %. Pass "
            "the packed model that was exported, or export this one."
        )


_OTHER = "The model is not the one that was exported to {path}"


def _target_of(record: Record, path: Path, target: str | Target | None) -> Target:
    """Return the target that a file was written for, by its name unless it is given."""
    target = None if target is None else target_named(target)
    if target is None and record.target not in TARGETS:
        raise ValueError(
            f"{path} was exported for {record.target!r}, a target that this package does not bring: pass an "
            "instance of its class, verify(path, target=...). The command lightning-mpq-verify knows only targets of "
            "this package."
        )
    if target is not None and target.name != record.target:
        raise ValueError(
            f"{path} was exported for the target {record.target!r}, and not for {target.name!r}: leave target= out, or "
            "export again for the other one."
        )
    return target_named(record.target if target is None else target)


def _compare_layers(record: Record, target: Target, path: Path) -> None:
    found = target.read(path)
    for name, was in record.stored.items():
        layers = [layer for layer, place in record.layers.items() if place == name]
        what = f"{path}: the layer {layers[0]!r} ({record.schemes[layers[0]]})"
        if name not in found:
            raise CorruptModelError(f"{what} is not in the file any more. Export again.")
        now = found[name]
        if now.bits != was.bits:
            raise CorruptModelError(f"{what} was written in {was.bits} bits and is in {now.bits} now. Export again.")
        if now != was:
            raise CorruptModelError(f"{what} has other codes or scales than were written. Export again.")


def _compare_files(record: Record, path: Path) -> None:
    now = files_at(path)
    for name, was in record.files.items():
        if now.get(name) != was:
            what = "is missing" if name not in now else f"has other content than the {was[0]:,} bytes that were written"
            raise CorruptModelError(
                f"{path}: {name} {what}; the layers' codes and scales are as they were. Export again."
            )
