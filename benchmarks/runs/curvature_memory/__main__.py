"""How much memory a profile takes beside a training step of the same network.

    python -m benchmarks.runs.curvature_memory

Each runs in a process of its own; what the interpreter and its libraries take is taken off both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from lightning_mpq import profile

from ...problems.profiling_cases import WIDTHS, profiling_case
from ...tools.memory import peak_bytes
from ...tools.targets import at_most
from ..arguments import parsed, parser_of
from ..ending import conclude

KINDS = ("nothing", "training", "fisher")


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("curvature_memory", __doc__)
    parser.add_argument("--network", default="transformer12", help="resnetN or transformerN")
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parsed(parser, words, network="transformer1")
    if arguments.peak:
        work(arguments.peak, arguments.network)
        print(peak_bytes())
        return
    memory = {kind: peak_of(kind, arguments.network) for kind in KINDS}
    base = memory["nothing"]
    ratio = round((memory["fisher"] - base) / (memory["training"] - base), 3)
    name = f"peak memory of a fisher profile over that of an AdamW step, {arguments.network}"
    reached = [at_most(name, ratio, 1.5)]
    print(memory)
    conclude(arguments, [memory], reached, {"network": arguments.network, "widths": list(WIDTHS)})


def peak_of(kind: str, network: str) -> int:
    """Return the peak memory of one kind of work, done in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.runs.curvature_memory", "--peak", kind, "--network", network]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def work(kind: str, network: str) -> None:
    """Do nothing, take two training steps, or profile."""
    torch.set_num_threads(1)
    if kind == "nothing":
        return
    case = profiling_case(network)
    if kind == "fisher":
        profile(
            case.model,
            [case.inputs],
            candidates=case.candidates(),
            likelihood=case.likelihood,
            statistics="frozen",
        )
        return
    optimizer = torch.optim.AdamW(case.model.train().parameters())
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(case.model(case.inputs).flatten(0, -2), case.targets.flatten()).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
