"""Ctrl-C at random moments: the model, torch and the process are as before, and the same call then does its work."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

import lightning_mpq as mpq

from ...tools.results import Row
from .model import batches, network
from .processes import in_process


@dataclass(frozen=True)
class Call:
    """A call of the package that is interrupted.

    Attributes:
        name: What it is.
        run: Model to something that is the same each time.
        changes: Whether it changes the model, if it comes to its end.
    """

    name: str
    run: Callable[[nn.Module], Any]
    changes: bool = False


def interrupts(folder: Path, count: int, seed: int, progress: Callable[[str], None]) -> list[Row]:
    """Interrupt a number of calls, spread over their kinds; return a row for each kind."""
    random, found = Random(seed), calls(folder)
    shares = [count // len(found) + (number < count % len(found)) for number in range(len(found))]
    rows = []
    for call, share in zip(found, shares, strict=True):
        rows.append(_row(call, share, random))
        progress(f"{rows[-1]['what']}: {rows[-1]['tried']} interrupts, {rows[-1]['faults']} faults")
    return rows


def calls(folder: Path) -> list[Call]:
    """Return the calls that are interrupted."""
    taylor = mpq.profile(network(), batches(), likelihood=mpq.Categorical())
    policy = mpq.allocate(taylor, mpq.Budget(average_bits=6.0)).policy

    def profile(estimator: str) -> Callable[[nn.Module], Any]:
        def run(model: nn.Module) -> Any:
            found = mpq.profile(model, batches(), bits=[2, 4], estimator=estimator, likelihood=mpq.Categorical())
            return found.curvature.tolist()

        return run

    def cached(model: nn.Module) -> Any:
        found = mpq.profile(model, batches(), likelihood=mpq.Categorical(), cache_dir=folder / "interrupted cache")
        return found.curvature.tolist()

    def rounded(model: nn.Module) -> Any:
        return mpq.round_candidates(model, batches()).fingerprint

    def quantized(model: nn.Module) -> Any:
        return mpq.quantize(model, policy, batches())(batches()[0]).tolist()

    def saved(model: nn.Module) -> Any:
        mpq.save(mpq.quantize(network(), policy, batches()), folder / "interrupted model")
        return mpq.load(folder / "interrupted model", network())(batches()[0]).tolist()

    return [
        Call("profile, fisher", profile("fisher")),
        Call("profile, gauss_newton", profile("gauss_newton")),
        Call("profile, secant", profile("secant")),
        Call("profile with a cache", cached),
        Call("round_candidates", rounded),
        Call("allocate", lambda model: mpq.allocate(taylor, mpq.Budget(average_bits=6.0)).policy.to_json()),
        Call("quantize", quantized, changes=True),
        Call("save and load", saved),
    ]


def _row(call: Call, count: int, random: Random) -> Row:
    begin = time.monotonic()
    state, expected = in_process(lambda: call.run(network().train()))
    seconds = time.monotonic() - begin
    assert state == "returned", (call.name, expected)
    outcomes, faults = Counter[str](), []
    for _ in range(count):
        after = seconds * 1.1 * random.random()
        state, value = in_process(lambda: _interrupted(call, expected), after=after, send=signal.SIGINT)
        outcomes[str(value[0]) if state == "returned" else state] += 1
        fault = value[1] if state == "returned" else f"{state}: {value}"
        faults += [f"after {after:.3f} s: {fault}"] if fault else []
    return {
        "campaign": "interrupts",
        "what": call.name,
        "tried": count,
        "faults": len(faults),
        "outcomes": dict(outcomes),
        "first_fault": faults[0] if faults else None,
    }


def _interrupted(call: Call, expected: Any) -> tuple[str, str | None]:
    """Run a call that may be interrupted, then look at what it left, then run it again."""
    model = network().train()
    before, threads = _state(model), threading.active_count()
    try:
        try:
            call.run(model)
            outcome = "too late"
        except KeyboardInterrupt:
            outcome = "interrupted"
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:  # between the two lines
        outcome = "interrupted"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    whole = call.changes and any(hasattr(module, "packed_codes") for module in model.modules())
    if not whole and (changed := _difference(before, _state(model))):
        return outcome, f"{outcome}, and {changed} is not as before"
    if threading.active_count() > threads:
        return outcome, f"{outcome}, and a thread is left"
    again = call.run(network().train() if whole else model)
    return outcome, None if again == expected else f"{outcome}, and the call then returns something else"


def _state(model: nn.Module) -> dict[str, Any]:
    """Return everything of the model and of torch that must be as before."""
    return {
        "the model's state": [(name, value.tolist()) for name, value in model.state_dict().items()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "a mode": [module.training for module in model.modules()],
        "a hook": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "an attribute": [sorted(module.__dict__) for module in model.modules()],
        "torch's fast path": torch.backends.mha.get_fastpath_enabled(),
        "torch's attention": torch.backends.cuda.flash_sdp_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "the random state": torch.get_rng_state().tolist(),
    }


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    return next((name for name, value in before.items() if after[name] != value), None)
