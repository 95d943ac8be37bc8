"""Policies over weights and inputs of a pretrained network, predicted and measured on samples that nobody has seen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

import lightning_mpq as mpq
from lightning_mpq.groups.groups import LayerGroups
from lightning_mpq.modules.workload import measure_workload

from ...methods.joint_policies import bit_operations, uniform_policies
from ...methods.onnxruntime_files import Session, export_float, quantize_dynamically, quantize_statically
from ...problems.subjects import Subject, WithMask
from ...problems.unseen import Unseen
from ...tools.results import Row

REPAIR = mpq.RepairOptions(batchnorm=False)
"""BatchNorm statistics measured again on so few samples do harm; a job finds that, and profiles without them too."""
_FAR = 0.5
"""How far a file may be from PyTorch: one code beside another grows over twelve blocks to what rounding itself does."""


def measure(subject: Subject, bits: list[int], inputs: list[int]) -> Iterator[Row]:
    """Yield a row for each policy: what it was predicted to lose beside what it loses on unseen samples."""
    model, batches = subject.model, subject.calibration
    groups = _groups(subject)
    candidates = mpq.make_candidates(groups, bits, granularities=["channel"], grids=["symmetric"], inputs=inputs)
    rounded = mpq.round_candidates(model, batches, groups, candidates, likelihood=subject.likelihood)
    known: dict[str, Any] = {"groups": groups, "rounded": rounded, "likelihood": subject.likelihood}
    taylor = mpq.profile(model, batches, statistics="frozen", **known)
    macs = measure_workload(model, batches, groups).macs
    unseen = Unseen(subject)
    found = uniform_policies(taylor, ((8, 8), (4, 8)))
    if "W4A8" in found:
        budget = mpq.Budget(bit_operations=bit_operations(found["W4A8"], macs), macs=macs)
        for objective in ("quadratic", "additive"):
            found[f"W4A8 BOPs, {objective}"] = mpq.allocate(taylor, budget, objective=objective).policy
    done: dict[mpq.BitPolicy, dict[str, float]] = {}
    for name, policy in found.items():
        if policy not in done:
            packed = mpq.quantize(copy.deepcopy(model), policy, batches, rounded=rounded, repair=REPAIR)
            clipped = max(mpq.clipped_inputs(packed, subject.unseen[:2]).values())
            done[policy] = {**unseen.of(packed), "clipped": clipped}
        schemes = policy.values()
        yield {
            "model": name,
            "weights": sum(scheme.bits for scheme in schemes) / len(schemes),
            "inputs": sum(scheme.input_bits or 32 for scheme in schemes) / len(schemes),
            "bit_operations": bit_operations(policy, macs),
            "predicted_loss": taylor.predict(policy).value,
            **done[policy],
        }


def peers(subject: Subject) -> Iterator[Row]:
    """Yield a row for the float file in onnxruntime, and for each of its own ways to quantize it to 8 by 8 bits."""
    unseen, batches = Unseen(subject), subject.calibration
    static, alone = partial(quantize_statically, batches=batches), {"products_only": True}
    ways: dict[str, Callable[..., Path]] = {
        "onnxruntime, dynamic, products with weights": quantize_dynamically,
        "onnxruntime, static, products with weights": partial(static, **alone),
        "onnxruntime, static": static,
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        export_float(subject.model, batches[0], path)
        yield {"file": "float", "bytes": path.stat().st_size, **unseen.of(Session(path))}
        for number, (name, way) in enumerate(ways.items()):
            written = way(path, written=Path(folder) / f"{number}.onnx")
            yield {"file": name, "bytes": written.stat().st_size, **unseen.of(Session(written))}


def deployed(subject: Subject) -> Iterator[Row]:
    """Yield a row for the file in onnxruntime that holds our 8 by 8 bits."""
    model, batches = subject.model, subject.calibration
    unseen, groups = Unseen(subject), _groups(subject)
    offered = mpq.make_candidates(groups, [8], granularities=["channel"], grids=["symmetric"], inputs=[8])
    rounded = mpq.round_candidates(model, batches, groups, offered, likelihood=subject.likelihood)
    policy = mpq.BitPolicy({c.group: c.scheme for c in rounded.candidates}, {g.name: g.layers for g in groups})
    packed = mpq.quantize(copy.deepcopy(model), policy, batches, rounded=rounded)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "own.onnx"
        integers = mpq.export_onnx(packed, path, batches[0][:2], tolerance=_FAR).integers
        yield {
            "file": "W8A8", "bytes": path.stat().st_size, "operations_of_integers": integers,
            **unseen.of(Session(path)),
        }  # fmt: skip


def of_tensors(subject: Subject) -> Subject:
    """Return the same with batches that are single tensors, as a file in onnxruntime takes them."""
    if isinstance(subject.model, WithMask):
        calibration, unseen = ([batch["input_ids"] for batch in part] for part in (subject.calibration, subject.unseen))
        return subject._replace(model=subject.model.encoder, calibration=calibration, unseen=unseen)
    return subject


def _groups(subject: Subject) -> LayerGroups:
    """Return what is decided: not tables that rows are looked up in, which onnxruntime leaves as they are, too."""
    tables = [name for name, module in subject.model.named_modules() if isinstance(module, nn.Embedding)]
    return mpq.find_groups(subject.model, keep_float=tables, batches=subject.calibration[:1])
