"""What reads files: each must end in the exception that it documents, or in what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import lightning as L

import lightning_mpq as mpq
from lightning_mpq.demo.idx import read_idx

from .model import POLICY, Module, batches, network, packed, profiled
from .mutations import damaged, forged_header, forged_json

Mutation = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Loader:
    """Something that reads a file.

    Attributes:
        name: What it is.
        path: A file that is as it was written.
        load: Reads the file; returns what must be the same as for the file as it was written, None if anything may be.
        documented: The exceptions that it documents.
        mutations: What becomes of the file.
    """

    name: str
    path: Path
    load: Callable[[], Any]
    documented: tuple[type[Exception], ...]
    mutations: tuple[Mutation, ...] = (damaged,)


def loaders(folder: Path) -> list[Loader]:
    """Write one file for each loader and return all."""
    corrupt, value = (mpq.CorruptModelError,), (ValueError,)
    saved = mpq.save(packed(), folder / "saved")
    [weights] = saved.glob("weights-*")
    policy = POLICY.save(folder / "policy.json")
    table = _written(folder / "table.json", json.dumps([{"group": "a", "scheme": "3", "milliseconds": 0.5}]))
    csv = _written(folder / "table.csv", "group,scheme,milliseconds\na,3,0.5\nb,4,0.25\n")
    cache = folder / "cache"
    reference = profiled(cache)
    wider = profiled(folder / "other", (3, 4))
    [taylor], [kept] = cache.glob("*.taylor.*"), cache.glob("*.batches.*")
    model = reference.save(folder / "model.taylor")
    checkpoint = _checkpoint(folder / "model.ckpt")
    report = _written(folder / "report.json", json.dumps(_report().to_dict()))
    images = folder / "images.idx"
    images.write_bytes(b"\0\0\x08\x02" + bytes([0, 0, 0, 3, 0, 0, 0, 4]) + bytes(range(12)))

    def cached() -> Any:
        return profiled(cache).curvature.tolist()

    def continued() -> Any:
        (cache / taylor.name).unlink(missing_ok=True)
        return profiled(cache, (3, 4)).curvature.tolist()

    assert wider.curvature.tolist() == profiled(folder / "other", (3, 4)).curvature.tolist()
    return [
        Loader("saved model, manifest", saved / "lightning_mpq.json", lambda: _outputs(saved), corrupt, _JSON),
        Loader("saved model, tensors", weights, lambda: _outputs(saved), corrupt, (damaged, forged_header)),
        Loader("checkpoint, instance", checkpoint, lambda: _checkpoint_outputs(checkpoint, Module()), corrupt),
        Loader("checkpoint, class", checkpoint, lambda: _checkpoint_outputs(checkpoint, Module), corrupt),
        Loader("policy", policy, lambda: _nothing(mpq.BitPolicy.load(policy)), value, _JSON),
        Loader("latency table, JSON", table, lambda: _nothing(mpq.LatencyTable.read(table)), value, _JSON),
        Loader("latency table, CSV", csv, lambda: _nothing(mpq.LatencyTable.read(csv)), value),
        Loader("Taylor model", model, lambda: _nothing(mpq.TaylorModel.load(model)), corrupt, (damaged, forged_header)),
        Loader("report", report, lambda: _nothing(mpq.Report.from_dict(_parsed(report))), value, _JSON),
        Loader("IDX images", images, lambda: _nothing(read_idx(images)), value),
        Loader("cache, Taylor model", taylor, cached, (), (damaged, forged_header)),
        Loader("cache, kept measurements", kept, continued, (), (damaged, forged_header)),
    ]


_JSON: tuple[Mutation, ...] = (damaged, forged_json)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except RecursionError as error:  # of Python's own parser, which our users call
        raise ValueError("nested too deeply") from error


def _checkpoint(path: Path) -> Path:
    module = Module()
    mpq.quantize(module.network, POLICY)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


def _outputs(folder: Path) -> Any:
    return mpq.load(folder, network())(batches()[0]).tolist()


def _checkpoint_outputs(path: Path, module: Any) -> Any:
    return mpq.load(path, module).eval().network(batches()[0]).tolist()


def _nothing(_: object) -> None:
    """Anything may come out of a file without a hash, as long as it is of the right kind."""


def _report() -> mpq.Report:
    from lightning_mpq.report.rows import GroupRow, ModelRow, RepairRow, TrialRow

    return mpq.Report(
        loss="divergence",
        models=(ModelRow("float", 32.0, 100, 0.0, 0.0), ModelRow("chosen", 3.0, 10, 0.1, 0.1)),
        groups=(GroupRow("a", ("a",), 3, "3-bit half/channel", 9, 4, 0.1, 0.1, 0.1),),
        left_in_float={"b": "too small"},
        solver={"gap": 0.0},
        seconds={"profile": 1.0},
        samples=8,
        repair=(RepairRow("independent", ("biases",), 0.1),),
        trials=(TrialRow(0, "solved", {"a": 3}, 0.1, 0.1),),
    )
