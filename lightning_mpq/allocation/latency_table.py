"""Measured milliseconds of each (group, scheme), from a CSV or JSON file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from ..groups.candidates import Candidate

_COLUMNS = ("group", "scheme", "milliseconds")


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of a group under a scheme.

    Attributes:
        entries: (group, scheme) to milliseconds. The scheme is its name (``"3-bit half/channel"``), or just
            its width (``"3"``) for every scheme of that width; the name goes first.

    Example:
        >>> table = LatencyTable({("head", "3"): 0.25, ("head", "8"): 0.5})
        >>> from lightning_mpq import Budget
        >>> Budget(latency=0.4, latency_table=table).latency
        0.4
    """

    entries: Mapping[tuple[str, str], float]

    def __post_init__(self) -> None:
        """Refuse times that are no times."""
        for (group, scheme), value in self.entries.items():
            if not isfinite(value) or value < 0:
                raise ValueError(f"The latency of {group} @ {scheme} must be at least 0 milliseconds, got {value!r}.")

    @classmethod
    def read(cls, path: str | Path) -> LatencyTable:
        """Read a CSV file with the header ``group,scheme,milliseconds``, or a JSON list of such objects.

        Raises:
            ValueError: If a column is missing, a time is no number, or a pair stands twice.
        """
        path = Path(path)
        text = path.read_text(encoding="utf-8")
        rows: Iterable[Mapping[str, object]]
        if path.suffix.lower() == ".json":
            try:
                rows = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path.name} is not JSON: {error}.") from error
        else:
            rows = list(csv.DictReader(text.splitlines()))
        entries: dict[tuple[str, str], float] = {}
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping) or any(row.get(column) in (None, "") for column in _COLUMNS):
                raise ValueError(f"Row {number} of {path.name} must have {', '.join(_COLUMNS)}, got {row!r}.")
            key = (str(row["group"]), str(row["scheme"]).strip())
            if key in entries:
                raise ValueError(f"{path.name} lists {key[0]} @ {key[1]} twice; keep one row.")
            try:
                entries[key] = float(str(row["milliseconds"]))
            except ValueError as error:
                raise ValueError(
                    f"Row {number} of {path.name}: {row['milliseconds']!r} is no time; give milliseconds."
                ) from error
        if not entries:
            raise ValueError(f"{path.name} lists no latency; expected the columns {', '.join(_COLUMNS)}.")
        return cls(entries)

    def milliseconds(self, candidate: Candidate) -> float:
        """Return the time of a candidate.

        Raises:
            ValueError: If the table has neither its scheme nor its width.
        """
        for scheme in (str(candidate.scheme), str(candidate.scheme.bits)):
            if (candidate.group, scheme) in self.entries:
                return self.entries[candidate.group, scheme]
        raise ValueError(
            f"The latency table has no entry for {candidate.group} @ {candidate.scheme}. Add one for it, or one for "
            f"{candidate.scheme.bits} that counts for every scheme of that width."
        )
