"""What the processes of one profile must agree on, and which of them measured what already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from ...groups.candidates import Candidate
from ...rounding.rounded_weights import RoundedWeights
from ...tools.distributed import active, broadcast, gather
from ...tools.warning import warn
from .fingerprint import hash_state


def common_key(key: str, model: nn.Module, candidates: Sequence[Candidate], rounded: RoundedWeights | None) -> str:
    """Return rank 0's settings hash for all ranks, which must hold the same model.

    What a setting prints as may differ from process to process; weights and buffers may not.
    """
    if not active():
        return key
    if len(set(gather(hash_state(model)))) > 1:
        raise ValueError(
            "The processes hold models with different weights or buffers (BatchNorm statistics?). Give all of them "
            "the state of rank 0; lightning_mpq.distributed.share_buffers(model) does so for buffers."
        )
    if len(set(gather((repr(candidates), rounded and rounded.fingerprint)))) > 1:
        raise ValueError(
            "The processes profile different candidates, or differently rounded ones. Make them on all ranks from the "
            "same arguments; round_candidates gives all of them rank 0's codes."
        )
    return broadcast(key)


def check_parts(parts: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Check what the processes measured: the likelihood that each guessed, and hashes of its batches.

    Raises:
        ValueError: If there was no batch, or guesses differ.
    """
    hashes = [set(digests) for _, digests in parts]
    if not any(hashes):
        raise ValueError("There is nothing to profile on: the iterable of batches is empty. Give at least one.")
    guesses = {guess for guess, _ in parts}
    if len(guesses) > 1:
        raise ValueError(
            f"likelihood='auto' took {' and '.join(sorted(guesses))} on different processes; pass likelihood= to "
            "decide it."
        )
    repeated = sum(map(len, hashes)) - len(set().union(*hashes))
    if repeated:
        warn(
            f"{repeated} calibration batches were measured on more than one process, and count as if they were "
            "different data. Give every process batches of its own, for instance by a DistributedSampler."
        )


def shares_of_ranks(measured: Sequence[str], hashes: Sequence[Sequence[str]]) -> list[Counter[str]]:
    """Return for each rank which of its batches were measured already, each measurement used once."""
    left = Counter(measured)
    shares: list[Counter[str]] = []
    for own in hashes:
        shares.append(Counter(own) & left)
        left -= shares[-1]
    return shares
