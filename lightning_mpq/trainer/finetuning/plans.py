"""Which plan a fit fine-tunes under: the one that a checkpoint must agree with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...allocation import Budget
from ...policy import BitPolicy


def plain_budget(budget: Budget) -> dict[str, Any]:
    """Return those bounds of a budget that are numbers, for a checkpoint."""
    return {key: value for key, value in vars(budget).items() if isinstance(value, (int, float))}


def refuse_another_plan(state: Mapping[str, Any], given: BitPolicy | None, budget: Budget) -> None:
    """Refuse to go on fine-tuning under another plan than the one a checkpoint was quantized with.

    Args:
        state: The callback's state in the checkpoint.
        given: The plan that the user gave to be followed, if any.
        budget: What the plan would be made for otherwise.

    Raises:
        ValueError: If plan or budget differ from those of the checkpoint.
    """
    if (state.get("finetuning") or {}).get("phase") != "training":
        return
    if given is not None and given != BitPolicy.from_json(state["policy"]):
        raise ValueError(
            "The checkpoint was fine-tuned under another plan than policy=. Leave policy out to go on with the "
            "checkpoint's own, or start from a checkpoint of the float phase."
        )
    own = plain_budget(budget)
    if given is None and state["budget"] != own:
        raise ValueError(
            f"The checkpoint was fine-tuned under the budget {state['budget']}, and the callback has {own}. Go on with "
            "the same budget, or start from a checkpoint of the float phase."
        )
