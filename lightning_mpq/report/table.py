"""The report as rich tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..allocation.stability import Stability
from ..tools.kinds import checked_kinds
from .records import Report
from .rows import PairsRow

_LOG_WIDTH = 160


@checked_kinds
def print_report(report: Report, console: Console | None = None) -> None:
    """Print the comparison, the groups of the policy, and what the proof and the stages cost.

    Args:
        report: As in ``mixed.report``, or read from a file.
        console: Where to print; by default the terminal, or standard output without cutting columns.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:  # a log file has no width of its own; rich would cut columns at 80
            console = Console(width=_LOG_WIDTH)
    console.print(models_table(report))
    console.print(groups_table(report))
    if len(report.trials) > 1:
        console.print(trials_table(report))
    if len(report.repair) > 1:
        console.print(repair_table(report))
    for layer, reason in report.left_in_float.items():
        console.print(f"left in float: {layer}: {reason}", markup=False, highlight=False)
    console.print(_summary(report), markup=False, highlight=False)


def models_table(report: Report) -> Table:
    """Return one row a model: bits, bytes, predicted and measured loss, and the module's own metrics."""
    where = f", on {report.held_out} held-out samples" if report.held_out else ""
    table = Table(title=f"Comparison (loss: {_meaning(report.loss)}{where})")
    names = list(dict.fromkeys(name for row in report.models for name in row.metrics))
    table.add_column("model")
    for title in (
        "bits/weight",
        "stored bytes",
        "x smaller",
        "predicted loss",
        "measured, as rounded",
        "repaired",
        "above chosen",
        *(["on fitted data"] if report.held_out else []),
        *names,
    ):
        table.add_column(title, justify="right")
    largest = max(row.stored_bytes for row in report.models)
    for row in report.models:
        table.add_row(
            row.name,
            f"{row.average_bits:.3f}",
            f"{row.stored_bytes:,}",
            f"{largest / row.stored_bytes:.2f}",
            _number(row.predicted_loss),
            _number(row.measured_frozen),
            _number(row.measured_loss),
            _with_error(row.above_chosen, row.above_chosen_error) if row.name != "chosen" else "",
            *([_number(row.fitted_loss)] if report.held_out else []),
            *(_number(row.metrics.get(name)) for name in names),
        )
    return table


def groups_table(report: Report) -> Table:
    """Return one row a group of the chosen policy."""
    table = Table(title="The chosen policy")
    table.add_column("group")
    for title in ("bits", "scheme", "weights", "bytes", "predicted share", "predicted alone", "measured alone"):
        table.add_column(title, justify="left" if title == "scheme" else "right")
    for row in report.groups:
        table.add_row(
            row.group,
            str(row.bits),
            row.scheme,
            f"{row.weights:,}",
            f"{row.stored_bytes:,}",
            _number(row.predicted_share),
            _number(row.predicted_alone),
            _number(row.measured_alone),
        )
    return table


def repair_table(report: Report) -> Table:
    """Return one row a step of repair of the chosen policy."""
    table = Table(title="What repair gains")
    table.add_column("rounding")
    table.add_column("repaired")
    for title in ("measured loss", *(["on fitted data"] if report.held_out else [])):
        table.add_column(title, justify="right")
    for row in report.repair:
        steps = (f"({step} taken back)" if step in row.refused else step for step in row.repaired)
        fitted = [_number(row.fitted_loss)] if report.held_out else []
        table.add_row(row.rounding, " + ".join(steps) or "-", _number(row.measured_loss), *fitted)
    return table


def trials_table(report: Report) -> Table:
    """Return one row a policy that was measured before one was chosen."""
    table = Table(title="The policies that were measured")
    table.add_column("round", justify="right")
    table.add_column("policy")
    fitted = ["on fitted data"] if report.held_out else []
    for title in ("predicted loss", *fitted, "measured loss", "above the kept one"):
        table.add_column(title, justify="right")
    table.add_column("kept")
    for row in report.trials:
        above = "" if row.kept else _with_error(row.above_kept, row.above_kept_error)
        shown = (_number(row.fitted_loss) for _ in fitted)
        numbers = (_number(row.predicted_loss), *shown, _number(row.measured_loss), above)
        table.add_row(str(row.round), row.policy, *numbers, "yes" if row.kept else "")
    return table


def _summary(report: Report) -> str:
    solver = report.solver
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.seconds.items())
    lines = [
        f"Solver: {solver['status']}, predicted loss {_number(solver['predicted_loss'])}{_unit(report.loss)}, proven "
        "lower bound "
        f"{_number(solver['lower_bound'])}, gap {100 * solver['gap']:.3f} %",
        f"Stages on {report.samples} samples: {stages}",
        _held_out(report),
    ]
    if clipped := next((row.clipped for row in report.models if row.name == "chosen"), {}):
        most = max(clipped, key=lambda name: clipped[name])
        mean = sum(clipped.values()) / len(clipped)
        lines.append(
            f"Inputs: {100 * mean:.2g} % of the held-out values lie beyond their ranges, of {most!r} "
            f"{100 * clipped[most]:.2g} %, the most"
        )
    if report.coverage is not None:
        lines.append(f"Quantized: {report.coverage}, over which bits per weight are averaged")
    if report.pairs is not None:
        lines.append(_pairs(report.pairs))
    if stability := solver.get("stability"):
        lines.append(f"Stability: {Stability.from_dict(stability)}")
    if (tuned := report.finetuning) is not None:
        before, after = _number(tuned.loss_before), _number(tuned.loss_after)
        lines.append(f"Fine-tuning: task loss on the calibration batches {before} -> {after}")
    return "\n".join(lines)


def _held_out(report: Report) -> str:
    """Say what judges, and how much the packed model has been fitted to the rest."""
    if not report.held_out:
        return "Nothing is held out: losses are measured on the samples that rounding and repair were fitted to"
    chosen = report["chosen"]
    return (
        f"Held out: {report.held_out} samples, which judge; the chosen model loses {_number(chosen.measured_loss)} on "
        f"them and {_number(chosen.fitted_loss)} on samples that it was fitted to"
    )


def _pairs(pairs: PairsRow) -> str:
    """Say whether terms between groups count in this job, or the additive policy does as well."""
    error = "" if pairs.standard_error is None else f" +- {_number(pairs.standard_error)}"
    said = f"Between groups: {pairs.measured:+.3g}{error} of a predicted loss of {_number(pairs.total)}"
    if pairs.share is not None and pairs.share_error is not None:
        said += f" ({100 * pairs.share:.2g} +- {100 * pairs.share_error:.2g} %)"
    if pairs.significant is None:
        return f"{said} (no standard error is known)"
    if pairs.significant:
        return f"{said}: pairs count here"
    return f"{said}: zero within its error, so that an additive policy does as well"


def _meaning(loss: str) -> str:
    if loss == "divergence":
        return "KL divergence from the float model in nats per sample, summed over its positions and outputs"
    return "change of the task loss, in its own unit"


def _unit(loss: str) -> str:
    return " nats per sample" if loss == "divergence" else ""


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:+.2g}" if error is None else f"{value:+.2g} +- {error:.1g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
