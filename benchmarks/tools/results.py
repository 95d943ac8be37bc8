"""Result files: tables of rows beside where and how they were measured, written whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_mpq.tools.files import write_text_atomically

from .environment import PACKAGES, environment
from .targets import Target

RESULTS = Path(__file__).parents[1] / "results"
Row = dict[str, Any]
Content = Mapping[str, Any]


def write_results(
    name: str,
    *,
    settings: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    targets: Sequence[Target] = (),
    output: Path | None = None,
    packages: Iterable[str] = PACKAGES,
    **others: Sequence[Mapping[str, Any]],
) -> Path:
    """Write ``benchmarks/results/NAME.json`` with the keys environment, settings, targets and results.

    Args:
        name: Name of the benchmark, with ``-variant`` if it has several.
        settings: Seeds, sizes, limits; what was left out stands under ``skipped``.
        results: One row for each measurement, or for several summed up: the file is for reading, no store of points.
        targets: Every figure that something was meant to reach, met or not.
        output: Another path to write to.
        packages: Distributions whose versions are recorded.
        others: More tables, by the key that they get.

    Returns:
        The path that was written.
    """
    head = {"environment": environment(packages), "settings": settings}
    tables = {"targets": [vars(target) for target in targets], "results": results, **others}
    return write_text_atomically(output or RESULTS / f"{name}.json", as_json(head, tables))


def as_json(head: Mapping[str, Mapping[str, Any]], tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return a result file's text: one line for each row of a table, after the names of its columns.

    ``pandas.DataFrame(**content["results"])`` opens such a table.

    Args:
        head: Key to what stands before the tables.
        tables: Key to rows; what a row lacks is null.
    """
    parts = [f" {json.dumps(key)}: {_lines(value)}" for key, value in head.items()]
    parts += [f" {json.dumps(key)}: {_table(rows)}" for key, rows in tables.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_results(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Return a result file, its tables as lists of rows."""
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return {key: _rows(value) if _is_table(value) else value for key, value in content.items()}


def _lines(values: Mapping[str, Any]) -> str:
    lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in values.items()]
    return "{\n" + ",\n".join(lines) + "\n }"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = ([row.get(column) for column in columns] for row in rows)
    lines = [json.dumps(values, allow_nan=False, separators=(",", ":")) for values in cells]
    return f'{{\n  "columns": {json.dumps(columns)},\n  "data": [\n   ' + ",\n   ".join(lines) + "\n  ]\n }"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"columns", "data"}


def _rows(table: Mapping[str, Any]) -> list[Row]:
    return [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
