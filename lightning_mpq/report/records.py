"""The report of a job: its numbers as plain values, as JSON, as a picture and as a page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..groups.coverage import Coverage
from ..tools.checks import shown
from ..tools.files import write_text_atomically
from .frontier_record import FrontierRecord
from .old_words import in_present_words
from .page.writing import write_page
from .picture import plot_losses
from .rows import FinetuningRow, GroupRow, ModelRow, PairsRow, RepairRow, TargetRow, TrialRow

REPORT_FORMAT = "lightning_mpq.report"
REPORT_VERSION = 2
# On one line, where a number a line would make a file of a hundred thousand. No string holds a line break.
_LIST_OF_NUMBERS = re.compile(r"\[\n([-+.\deE,\s]+?)\n\s*\]")


@dataclass(frozen=True)
class Report:
    """Everything that a user needs to judge a quantized model.

    Attributes:
        loss: What the loss columns mean: "divergence" (KL from the float model, nats per sample) or "task".
        models: Float, uniform, additive and chosen model, and the fine-tuned one.
        groups: The groups of the chosen policy.
        left_in_float: Layer to the reason why it was not quantized.
        solver: Status, predicted loss, lower bound, gap and costs of the allocation.
        seconds: Wall time of each stage.
        samples: Samples in the calibration batches.
        held_out: How many of them were held out: not seen by rounding, profile and repair, and judging them.
        repair: The chosen policy after each step of repair.
        trials: The policies among which it was chosen.
        pairs: What the terms between groups contribute; None where an older report did not say.
        finetuning: The task loss before and after it; None if there was none, or its loss could not be measured.
        coverage: How many of the model's parameters are quantized; None where an older report did not say.
        frontier: Policies of other budgets, and what each candidate would change; None where an older report did not
            say.
        receipt: With what it was made: versions, seeds, hashes, peak memory.
        targets: Which runtimes can hold the chosen policy; none where an older report did not say.

    Example::

        report = mixed.report                    # or Report.from_dict(json.loads(Path("report.json").read_text()))
        report["chosen"].metrics, report["float"].metrics
        report["chosen"].stored_bytes / report["float"].stored_bytes
        mpq.print_report(report)
        report.to_html("report.html")            # the page to decide from
    """

    loss: str
    models: tuple[ModelRow, ...]
    groups: tuple[GroupRow, ...]
    left_in_float: Mapping[str, str]
    solver: Mapping[str, Any]
    seconds: Mapping[str, float]
    samples: int
    repair: tuple[RepairRow, ...] = ()
    trials: tuple[TrialRow, ...] = ()
    pairs: PairsRow | None = None
    finetuning: FinetuningRow | None = None
    coverage: Coverage | None = None
    held_out: int = 0
    frontier: FrontierRecord | None = None
    receipt: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[TargetRow, ...] = ()

    def __getitem__(self, name: str) -> ModelRow:
        """Return the model of a name or of the first word of it, as in ``report["chosen"]``."""
        for row in self.models:
            if name in (row.name, row.name.split()[0]):
                return row
        raise KeyError(f"No model {name!r} in the report; there are {[row.name for row in self.models]}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"format": REPORT_FORMAT, "version": REPORT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Build a report from what `to_dict` returned, also after a detour through JSON.

        Raises:
            ValueError: If the values are no report, or one of another version.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"A report is an object of JSON, got {shown(values)}.")
        if values.get("format") != REPORT_FORMAT or values.get("version") not in (1, REPORT_VERSION):
            raise ValueError(
                f"Expected a report of format {REPORT_FORMAT!r}, version 1 or {REPORT_VERSION}, got "
                f"{shown(values.get('format'))}, version {shown(values.get('version'))}."
            )
        try:
            return cls._of(values)
        except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"The report is malformed: {type(error).__name__}: {error}.") from error

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> Report:
        plain = in_present_words(values) if values["version"] == 1 else values
        fields = {key: value for key, value in plain.items() if key not in ("format", "version")}
        groups = tuple(GroupRow(**{**row, "layers": tuple(row["layers"])}) for row in fields["groups"])
        rows: dict[str, Any] = {"models": tuple(ModelRow.from_dict(row) for row in fields["models"]), "groups": groups}
        rows["repair"] = tuple(
            RepairRow(**{**row, **{key: tuple(row.get(key, ())) for key in ("repaired", "refused")}})
            for row in fields.get("repair", ())
        )
        rows["trials"] = tuple(TrialRow(**row) for row in fields.get("trials", ()))
        rows["targets"] = tuple(
            TargetRow(**{**row, "reasons": tuple(row.get("reasons", ()))}) for row in fields.get("targets", ())
        )
        rows["pairs"] = None if (pairs := fields.get("pairs")) is None else PairsRow(**pairs)
        rows["finetuning"] = None if (row := fields.get("finetuning")) is None else FinetuningRow(**row)
        rows["coverage"] = None if (row := fields.get("coverage")) is None else Coverage.from_dict(row)
        rows["frontier"] = None if (row := fields.get("frontier")) is None else FrontierRecord.from_dict(row)
        return cls(**{**fields, **rows})

    def scalars(self) -> dict[str, float]:
        """Return ``model/number`` to value, for a logger.

        A metric of the user's own that is called like one of these numbers goes by ``metric_`` and its name.
        """
        found: dict[str, float] = {"solver/gap": float(self.solver["gap"])}
        if stability := self.solver.get("stability"):
            found |= {f"stability/{name}": float(stability[name]) for name in ("kept", "near_best", "spread")}
        if self.coverage is not None:
            found["coverage"] = self.coverage.share
        if self.pairs is not None:
            shares = {"share": self.pairs.share, "share_error": self.pairs.share_error}
            found |= {f"pairs/{key}": value for key, value in shares.items() if value is not None}
        for row in self.models:
            short = row.name.split()[0]
            own: dict[str, float | None] = {"average_bits": row.average_bits, "stored_bytes": row.stored_bytes}
            own |= {"predicted_loss": row.predicted_loss, "measured_loss": row.measured_loss}
            own |= {"fitted_loss": row.fitted_loss}
            own |= {"above_chosen": row.above_chosen, "above_chosen_error": row.above_chosen_error}
            named = {f"metric_{key}" if key in own else key: value for key, value in row.metrics.items()}
            numbers = {**named, **own}
            found |= {f"{short}/{key}": float(value) for key, value in numbers.items() if value is not None}
        return found | {f"seconds/{stage}": seconds for stage, seconds in self.seconds.items()}

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON, whole or not at all, and return where."""
        text = json.dumps(self.to_dict(), indent=2)
        short = _LIST_OF_NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
        return write_text_atomically(Path(path), short + "\n")

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw predicted and measured loss over megabytes: the frontier, policies compared with, and the chosen one.

        Args:
            ax: Axes of matplotlib to draw on; a new figure by default.

        Returns:
            Figure and axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        rows = [row for row in self.models if row.name != "float"]
        measured = [(row.name, row.stored_bytes, row.measured_loss) for row in rows if row.measured_loss is not None]
        return plot_losses(self.frontier, measured, ax)

    def to_html(self, path: str | Path) -> Path:
        """Write the report as a page to decide from, whole or not at all, and return where.

        One file, which opens from disk without a network: the frontier with a slider that moves the budget, the policy
        layer by layer, predicted beside measured loss, and everything else that the report holds; below 1 MB, unless
        thousands of groups have long names.

        Args:
            path: Name of the file, as ``report.html``.
        """
        return write_page(Path(path), self.to_dict())
