"""How far, and how fast, allocations are proved, beside SCIP and CP-SAT; root bounds beside Clarabel and HiGHS.

python -m benchmarks.runs.allocation
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table

from ...methods.allocation_peers import PEERS
from ...methods.relaxation_peers import RELAXATIONS, RelaxationPeer
from ...problems.allocation_instances import resnet20, synthetic
from ...recorded_instances.files import recorded_problem
from ...tools.environment import PACKAGES
from ...tools.parts import Parts
from ...tools.results import Row
from ..arguments import parsed, parser_of, parts_of
from ..ending import conclude
from .cases import cases, largest, quick_cases, targets
from .measuring import GAP, measure, measure_frontier, measure_peer, measure_root


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("allocation", __doc__)
    parser.add_argument("--peer-seconds", type=float, default=30.0, help="time limit of other solvers")
    parser.add_argument("--budgets", type=int, default=30, help="budgets of the frontier")
    parser.add_argument("--known", action="store_true", help="only collect the parts that are there")
    arguments = parsed(parser, words, peer_seconds=1.0, budgets=2)
    parts = parts_of(arguments)
    solved = quick_cases() if arguments.quick else [*cases(), largest()]
    rows = [row for case in solved for row in parts.rows(case.name, partial(measure, case))]
    rows += parts.rows(f"frontier {arguments.budgets}", partial(measure_frontier, arguments.budgets, 60))
    by_peers, skipped = measure_peers(parts, arguments.peer_seconds, arguments.quick)
    roots, missing = measure_roots(parts, arguments.peer_seconds, arguments.quick)
    rows += by_peers + roots
    skipped += [*missing, *parts.left_out]
    print_table(rows)
    reached = targets(rows)
    conclude(
        arguments,
        rows,
        reached,
        {
            "gap": GAP,
            "seed": 0,
            "threads": "numpy and scipy as the environment sets them; python-mip on one",
            "seconds": "limits and targets count processor seconds, since other work may share the machine",
            "peer_seconds": arguments.peer_seconds,
            "skipped": skipped,
        },
        packages=(*PACKAGES, "pyscipopt", "ortools", "clarabel"),
    )


def measure_peers(parts: Parts, seconds: float, quick: bool) -> tuple[list[Row], list[str]]:
    """Return the rows of the solvers that are installed, and why others were left out."""
    rows: list[Row] = []
    skipped = []
    problems = {"resnet20 fisher at 3 bits": resnet20("fisher", 3.0)}
    if not quick:
        problems["mid 54 x 7 at 3 bits"] = synthetic("mid", 54, 7, 3.0)
    for name, peer in PEERS.items():
        if find_spec(peer.package) is None:
            skipped.append(f"{name}: {peer.package} is not installed")
            continue
        try:
            for instance, problem in problems.items():
                rows += parts.rows(f"{instance}, {name}", partial(measure_peer, name, instance, problem, seconds))
        except ImportError:  # whose message names files of this machine
            skipped.append(f"{name}: {peer.package} is installed and cannot be imported")
    return rows, skipped


def measure_roots(parts: Parts, seconds: float, quick: bool) -> tuple[list[Row], list[str]]:
    """Return the rows of all ways to a root bound, on problems small enough for a conic solver, and what is missing."""
    problems = {
        "mid 8 x 7 at 3 bits" if quick else "mid 12 x 7 at 3 bits": synthetic("mid", 8 if quick else 12, 7, 3.0)
    }
    if not quick:
        problems["minilm-nearest at 1 bits above the least"] = recorded_problem("minilm-nearest", 1.0)
    skipped = [f"{name}: {way.package} is not installed" for name, way in RELAXATIONS.items() if not _installed(way)]
    rows: list[Row] = []
    for instance, problem in problems.items():
        for name, way in RELAXATIONS.items():
            if not _installed(way):
                continue
            if way.most is not None and len(problem.group) > way.most:
                skipped.append(
                    f"{instance}, {name}: it takes more than 16 GB of memory with {len(problem.group)} candidates"
                )
                continue
            rows += parts.rows(f"{instance}, {name}", partial(measure_root, name, instance, problem, seconds))
    return rows, skipped


def _installed(way: RelaxationPeer) -> bool:
    return find_spec(way.package) is not None


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a row."""
    table = Table(title="Allocation: proved gap and time")
    for column in ("instance", "solver", "value", "gap", "wall s", "cpu s", "nodes", "additive policy"):
        table.add_column(column, justify="left" if column in ("instance", "solver") else "right")
    for row in rows:
        value, gap, excess = row.get("value"), row.get("gap"), row.get("additive_excess")
        table.add_row(
            row["instance"],
            row["solver"],
            "" if value is None else f"{value:.5g}",
            "no bound" if gap is None else f"{gap:.3%}",
            f"{row['wall_seconds']:.2f}",
            f"{row['processor_seconds']:.2f}" if "processor_seconds" in row else "",
            str(row.get("nodes", "")),
            "" if excess is None else f"{excess:+.1%}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
