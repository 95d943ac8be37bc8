"""Which schemes a group may be given."""

import pytest
from helpers.networks import mlp
from helpers.profiles import nearest_candidates

from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.schemes import WeightScheme


def test_candidates_follow_rules_and_refuse_gaps():
    found = find_groups(mlp(4, 4, 4, 3), fixed_bits={"4": 8})
    candidates = nearest_candidates(found, bits=[4, 8])
    assert [(c.group, c.scheme.bits) for c in candidates] == [("0", 4), ("0", 8), ("2", 4), ("2", 8), ("4", 8)]
    with pytest.raises(ValueError, match=r"No candidate is left for the group '4': the rules allow \[8\] bits"):
        nearest_candidates(found, bits=[3])
    with pytest.raises(ValueError, match="names nobody, which is no group"):
        make_candidates(found, schemes={"nobody": []})
    with pytest.raises(ValueError, match="offered twice"):
        make_candidates(found, schemes=[WeightScheme(8), WeightScheme(8)])
