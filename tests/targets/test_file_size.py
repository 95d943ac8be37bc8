"""A bound on a file is counted from what a written one holds beside candidates, and refused where none was written."""

import pytest
from helpers.networks import mlp, vectors

from lightning_mpq.allocation import Budget
from lightning_mpq.allocation.costs import cost_rows
from lightning_mpq.allocation.feasibility import check_budget
from lightning_mpq.errors import InfeasibleBudgetError
from lightning_mpq.groups.choices import Choices
from lightning_mpq.options import CandidateOptions
from lightning_mpq.targets import Torch, offer, with_file_rest


def choices():
    groups, candidates = offer(Torch(), mlp(6, 8, 3), CandidateOptions(rounding="nearest"))
    return Choices(tuple(groups), candidates, groups.float_bytes)


def test_it_is_the_rest_and_what_the_candidates_store():
    known = choices()
    budget = with_file_rest(
        Budget(file_bytes=5000), Torch(), mlp(6, 8, 3), known.groups, known.candidates, vectors(2)[0]
    )
    row = next(row for row in cost_rows(known, budget) if row.name == "file_bytes")
    first = [next(i for i, c in enumerate(known.candidates) if c.group == group.name) for group in known.groups]
    stored = sum(known.candidates[i].stored_bits for i in first) / 8
    assert row.of(first) == budget.file_rest + stored
    assert (row.limit, row.unit) == (5000, "bytes")
    assert with_file_rest(budget, Torch(), None, (), (), None) is budget  # measured once


def test_what_nobody_measured_is_refused_and_what_cannot_be_kept_is_known_before():
    with pytest.raises(ValueError, match=r"file_bytes is counted from .*with_file_rest\(budget, target"):
        cost_rows(choices(), Budget(file_bytes=5000))
    with pytest.raises(InfeasibleBudgetError, match="file_bytes=20 is below the least possible value"):
        check_budget(choices(), Budget(file_bytes=20))
    check_budget(choices(), Budget(file_bytes=60))
