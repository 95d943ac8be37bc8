"""Reports of made-up models, with everything that a job writes into one, and nothing measured."""

import random
from dataclasses import replace
from typing import Any

from helpers.taylor_models import make_taylor

from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.allocation.stability import Stability
from lightning_mpq.curvature import TaylorModel
from lightning_mpq.groups.coverage import Coverage
from lightning_mpq.options import CurvatureOptions, SolverOptions
from lightning_mpq.pipeline.frontier_record import frontier_record
from lightning_mpq.pipeline.receipt import receipt
from lightning_mpq.report import GroupRow, ModelRow, PairsRow, RepairRow, Report, TargetRow, TrialRow


def report_of(taylor: TaylorModel, average_bits: float = 4.0, **fields: Any) -> Report:
    """The report of a Taylor model, every "measured" number being 0.8 of what is predicted."""
    budget, solver = Budget(average_bits=average_bits), SolverOptions(time_limit=1.0)
    allocation = allocate(taylor, budget, time_limit=1.0)
    record = frontier_record(taylor, taylor, allocation, solver)
    chosen = next(point for point in record.points if point.name == "chosen")
    groups = tuple(
        GroupRow(
            group=group.name,
            layers=group.layers,
            bits=allocation.policy[group.name].bits,
            scheme=str(allocation.policy[group.name]),
            weights=group.weight_count,
            stored_bytes=int(own.stored_bytes[choice]),
            predicted_share=own.alone[choice] * 0.9,
            predicted_alone=own.alone[choice],
            measured_alone=own.alone[choice] * 0.8,
        )
        for group, own, choice in zip(taylor.groups, record.candidates, chosen.choice, strict=True)
    )
    uniform = record.others[0]
    loss = chosen.predicted_loss
    models = (
        ModelRow("float", 32.0, int(8 * chosen.stored_bytes), 0.0, 0.0, 0.0, {"val_accuracy": 0.95}),
        ModelRow(uniform.name, uniform.average_bits, int(uniform.stored_bytes), uniform.predicted_loss, 0.9 * loss),
        ModelRow(
            "chosen",
            chosen.average_bits,
            int(chosen.stored_bytes),
            loss,
            0.8 * loss,
            loss,
            {"val_accuracy": 0.9},
            intervals={"val_accuracy": (0.88, 0.92)},
        ),
    )
    report = Report(
        loss="divergence",
        models=models,
        groups=groups,
        left_in_float={"head.norm": "a norm"},
        solver={**allocation.to_dict(), "stability": made_up_stability(taylor, loss)},
        seconds={"profile": 1.5},
        samples=64,
        repair=(RepairRow("independent", (), loss), RepairRow("sequential", ("batchnorm",), 0.8 * loss)),
        trials=(
            TrialRow(0, "solved", allocation.policy.bits(), loss, 0.8 * loss, True),
            TrialRow(0, "additive", allocation.policy.bits(), 1.1 * loss, 0.9 * loss),
            TrialRow(0, "uniform", allocation.policy.bits(), 1.2 * loss, 1.1 * loss),
        ),
        pairs=PairsRow(0.1 * loss, 0.01 * loss, 0.09 * loss, loss),
        coverage=Coverage(900, 1000),
        frontier=record,
        targets=(
            TargetRow("torch", True, stored_bytes=1234),
            TargetRow("onnxruntime", False, 5, ("<b>'layer'</b> (3-bit half/channel): it has no such grid",)),
        ),
        receipt=receipt(taylor, allocation.policy, CurvatureOptions(), solver),
    )
    return replace(report, **fields)


def made_up_stability(taylor: TaylorModel, loss: float) -> dict[str, Any]:
    shares = {group.name: (at % 5) / 4 for at, group in enumerate(taylor.groups)}
    return Stability(20, 8, shares, 0.1 * loss, (0.8 * loss, 1.2 * loss), 0.7, 0.01, "Few samples.").to_dict()


def large_report(groups: int, points: int = 13, candidates: int = 7) -> Report:
    """A report of the size that a model of so many groups has, made of random numbers."""
    base = report_of(make_taylor(2, bits=range(2, 2 + candidates)))
    assert base.frontier is not None
    drawn = random.Random(0)
    names = [f"model.layers.{at // 7}.block{at % 7}.projection" for at in range(groups)]
    rows = [
        replace(
            base.groups[0],
            group=name,
            layers=(name,),
            predicted_share=drawn.random(),
            predicted_alone=drawn.random(),
            measured_alone=drawn.random(),
        )
        for name in names
    ]
    own = [
        replace(
            base.frontier.candidates[0],
            stored_bytes=tuple(float(drawn.randrange(10**6)) for _ in range(candidates)),
            alone=tuple(float(f"{drawn.random():.4g}") for _ in range(candidates)),
            instead=tuple(float(f"{drawn.random():.4g}") for _ in range(candidates)),
            pairs=tuple((drawn.randrange(groups), float(f"{drawn.random():.4g}")) for _ in range(3)),
        )
        for _ in names
    ]
    chosen = next(point for point in base.frontier.points if point.name == "chosen")
    swept = [
        replace(
            chosen,
            name="frontier" if at else "chosen",
            choice=tuple(drawn.randrange(candidates) for _ in names),
            stored_bytes=chosen.stored_bytes * (1 + at),
            predicted_loss=chosen.predicted_loss / (1 + at),
        )
        for at in range(points)
    ]
    record = replace(base.frontier, candidates=tuple(own), points=tuple(swept), others=(), blocks=None)
    bits = dict.fromkeys(names, 3)
    policy = {"groups": {name: {"layers": [name], "weight": vars_of_scheme(base)} for name in names}}
    solver = {**base.solver, "bits": bits, "additive_bits": bits, "policy": policy}
    trials = tuple(replace(trial, bits=bits) for trial in base.trials)
    return replace(base, groups=tuple(rows), frontier=record, solver=solver, trials=trials)


def vars_of_scheme(report: Report) -> dict[str, Any]:
    (_, first), *_ = report.solver["policy"]["groups"].items()
    return first["weight"]
