"""Schemes that tests go through, and models that have all of them."""

from lightning_mpq.grids.registry import DEFAULT_GRIDS, grid_named, known_grids
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import pack_model
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme


def grids_with(bits: int) -> list[str]:
    """Return the names of all grids that have levels for a width."""
    return [name for name in known_grids() if bits in grid_named(name).bits]


def packed_in_all_ways(model, granularity=("channel",)):
    """Pack every group with another width, grid and granularity than its neighbours."""
    schemes = {
        group.name: WeightScheme(2 + index % 7, granularity[index % len(granularity)], DEFAULT_GRIDS[index % 3])
        for index, group in enumerate(find_groups(model))
    }
    pack_model(model, BitPolicy(schemes, {group.name: group.layers for group in find_groups(model)}))
    return model
