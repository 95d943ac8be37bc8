"""Several processes on one job: sums over ranks, one rank's answer for all, and errors that all ranks raise together.

Every function does nothing but its local part where torch.distributed is not in use, or within `alone`. Otherwise all
ranks of the default process group must call it, in the same order.
"""

from .errors import errors_shared, on_rank_zero, refuse_empty_ranks
from .exchange import broadcast, gather, mean_over_ranks, share_buffers, sum_over_ranks
from .processes import active, alone, rank, world_size
from .rounds import Rounds

__all__ = [
    "Rounds",
    "active",
    "alone",
    "broadcast",
    "errors_shared",
    "gather",
    "mean_over_ranks",
    "on_rank_zero",
    "rank",
    "refuse_empty_ranks",
    "share_buffers",
    "sum_over_ranks",
    "world_size",
]
