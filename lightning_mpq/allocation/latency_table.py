"""Measured milliseconds of each (group, scheme), from a CSV or JSON file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

from ..groups.candidates import Candidate
from ..tools.checks import is_number, shown
from ..tools.reading import parse_json, read_text

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
        if not isinstance(self.entries, Mapping) or any(not _is_place(key) for key in self.entries):
            raise ValueError(
                "A latency table is a mapping such as {('head', '3'): 0.25}, from (group, scheme) to milliseconds, "
                f"got {shown(self.entries)}."
            )
        for (group, scheme), value in self.entries.items():
            if not is_number(value) or not 0 <= value < inf:
                raise ValueError(
                    f"The latency of {group} @ {scheme} must be at least 0 milliseconds, got {shown(value)}."
                )
        object.__setattr__(self, "entries", {(group, str(s)): value for (group, s), value in self.entries.items()})

    @classmethod
    def read(cls, path: str | Path) -> LatencyTable:
        """Read a CSV file with the header ``group,scheme,milliseconds``, or a JSON list of such objects.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If a column is missing, a time is no number, a pair stands twice, or it is no such file at all.
        """
        path = Path(path)
        text = read_text(path)
        rows: list[Mapping[str, object]]
        if path.suffix.lower() == ".json":
            try:
                rows = parse_json(text)
            except ValueError as error:
                raise ValueError(f"{path.name} is not JSON: {error}.") from error
            if not isinstance(rows, list):
                raise ValueError(f"{path.name} must be a list of objects with {', '.join(_COLUMNS)}.")
        else:
            try:
                rows = list(csv.DictReader(text.splitlines()))
            except csv.Error as error:
                raise ValueError(f"{path.name} is not CSV: {error}.") from error
        entries: dict[tuple[str, str], float] = {}
        for number, row in enumerate(rows, start=1):
            given = [row.get(column) for column in _COLUMNS] if isinstance(row, Mapping) else [None]
            if any(not isinstance(value, (str, int, float)) or value == "" for value in given):
                raise ValueError(f"Row {number} of {path.name} must have {', '.join(_COLUMNS)}, got {shown(row)}.")
            key = (str(row["group"]), str(row["scheme"]).strip())
            if key in entries:
                raise ValueError(f"{path.name} lists {shown(key[0])} @ {shown(key[1])} twice; keep one row.")
            try:
                entries[key] = float(str(row["milliseconds"]))
            except ValueError as error:
                raise ValueError(
                    f"Row {number} of {path.name}: {shown(row['milliseconds'])} is no time; give milliseconds."
                ) from error
        if not entries:
            raise ValueError(f"{path.name} lists no latency; expected the columns {', '.join(_COLUMNS)}.")
        return cls(entries)

    def milliseconds(self, candidate: Candidate) -> float:
        """Return the time of a candidate.

        Raises:
            ValueError: If the table has neither its scheme nor its width.
        """
        names = [str(candidate.scheme), str(candidate.scheme.bits)]
        if (inputs := candidate.scheme.input_bits) is not None:
            names[1] = f"W{candidate.scheme.bits}A{inputs}"
        for scheme in names:
            if (candidate.group, scheme) in self.entries:
                return self.entries[candidate.group, scheme]
        raise ValueError(
            f"The latency table has no entry for {candidate.group} @ {candidate.scheme}. Add one for it, or one for "
            f"{names[1]} that counts for every scheme of that width."
        )


def _is_place(key: object) -> bool:
    """Tell whether a key of a table is a group and a scheme, or a width."""
    if not isinstance(key, tuple) or len(key) != 2:
        return False
    return isinstance(key[0], str) and (isinstance(key[1], str) or is_number(key[1], whole=True))
