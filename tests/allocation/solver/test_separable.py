"""Prices of separable programs: the dual never falls on the way to them, wherever it begins."""

import numpy as np
import pytest
from helpers.taylor_models import make_taylor

from lightning_mpq.allocation import Budget
from lightning_mpq.allocation.preparation import Preparation
from lightning_mpq.allocation.rules import Rules
from lightning_mpq.allocation.solver.difference_form import difference_form
from lightning_mpq.allocation.solver.separable import _dual_value, masses, separable_centre


@pytest.mark.parametrize("price", [1e-14, 1e-8, 1e-2, 1e4])
@pytest.mark.parametrize("mu", [1e-12, 1e-7, 1e-2])
def test_the_dual_does_not_fall_from_where_it_begins(price, mu):
    for seed in range(4):
        prepared = Preparation.make(make_taylor(groups=6, seed=seed, scale=1e-5), Budget(average_bits=4.4), Rules())
        form = difference_form(prepared.problem, np.ones(len(prepared.problem.group), dtype=bool))
        first = np.full(len(form.limits), price)
        begin = masses(form.own + first @ form.rows, form.start, form.block, mu)
        before = _dual_value(form, form.own, mu, first, *begin)
        t, rest, prices = separable_centre(form, form.own, mu, first)
        after = _dual_value(form, form.own, mu, prices, t, rest)
        assert after >= before - 1e-9 * abs(before)
        assert (prices > 0).all()
        np.testing.assert_allclose(t, masses(form.own + prices @ form.rows, form.start, form.block, mu)[0])
