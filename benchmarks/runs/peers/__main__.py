"""Other quantizers beside this package: the same weights, samples, threads and stored bytes, in one run.

A budget of b bits is b bits of code a weight and a scale of 16 bits a row. Each peer runs as a process in its own
environment, which ``make peers`` makes; one that is missing is left out, and the result says so. Divergence and quality
are measured here, by the same code for all, on samples that no peer was given.

    make peers
    python -m benchmarks.runs.peers resnet20 minilm --root DIR --texts FOLDER --budgets 2.5 3 4
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ...problems.trained import TrainedNetworks
from ...tools.parts import Parts
from ...tools.results import Row, write_results
from ...tools.targets import print_targets
from ..arguments import parsed, parser_of, parts_of, settings_of
from .asking import Peer
from .measuring import FIGURES, row_of, with_all_figures, with_six_digits
from .peers import PEERS
from .problems import NETWORKS, TRAINED, TRANSFORMERS, Problem, digits, pretrained, trained
from .targets import targets


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, ask every peer, print and write."""
    parser = parser_of("peers", __doc__)
    names = [peer.name for peer in PEERS]
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}; default all")
    parser.add_argument("--root", type=Path, help="folder of the four IDX files of Fashion-MNIST")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the training of networks for Fashion-MNIST")
    parser.add_argument("--texts", type=Path, help="folder of html files, for the two language models")
    parser.add_argument(
        "--samples", type=int, default=128, help="to calibrate on; of digits thrice, of clothes four times as many"
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.5, 3.0, 3.5, 4.0], help="average bits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], choices=(0, 1, 2), help="draws of the samples")
    parser.add_argument("--peers", nargs="+", choices=names, default=names, metavar="PEER", help="; ".join(names))
    parser.add_argument("--minutes", type=float, default=30.0, help="that one answer may take")
    parser.add_argument("--known", action="store_true", help="only collect the parts that are there")
    quick = ["nearest, absmax", "nearest, least squares"]
    arguments = parsed(parser, words, networks=["made_up"], budgets=[3.0], peers=quick)
    if unknown := [name for name in arguments.networks if name not in (*NETWORKS, "made_up")]:
        parser.error(f"unknown network {unknown[0]!r}; expected some of {', '.join(NETWORKS)}.")
    if arguments.root is None and set(TRAINED) & set(arguments.networks) and not arguments.known:
        parser.error("--root=FOLDER is needed, with the four IDX files of Fashion-MNIST.")
    if arguments.texts is None and set(TRANSFORMERS) & set(arguments.networks) and not arguments.known:
        parser.error("--texts=FOLDER is needed, with html files of at least 700 paragraphs.")
    parts = parts_of(arguments)
    rows: list[Row] = []
    for network, seed in product(arguments.networks, arguments.seeds):
        found = rows_of(parts, network, seed, arguments)
        if arguments.known:  # what peers cannot do says nothing where none has answered
            answered = {row["budget"] for row in found if row["unseen_loss"] is not None}
            found = [row for row in found if row["budget"] in answered]
        for row in map(with_six_digits, found):
            if not row["cannot"] or _asked(row) not in map(_asked, rows):  # a reason stands once for all budgets
                rows.append(row)
    if arguments.known:
        told = {(row["network"], row["peer"]) for row in rows}
        every = product(arguments.networks, arguments.peers)
        parts.left_out = [f"{network}, {peer}: not measured" for network, peer in every if (network, peer) not in told]
    versions = {(row["peer"], row["versions"]): None for row in rows if row["versions"]}
    rows = [{key: value for key, value in row.items() if key != "versions"} for row in rows]
    print_table(rows)
    reached = targets(rows)
    print_targets(reached, arguments.quick)
    path = write_results(
        "peers",
        settings={**settings_of(arguments, "texts"), "skipped": parts.left_out},
        results=rows,
        targets=reached,
        output=arguments.output,
        packages=("torch", "transformers", "numpy", "scipy", "mip", "highspy"),
        versions=[{"peer": peer, "versions": of_peer} for peer, of_peer in versions],
    )
    print(f"written to {path}")


def rows_of(parts: Parts, network: str, seed: int, arguments: argparse.Namespace) -> list[Row]:
    """Return the rows of a network and a draw of its samples."""
    problem: list[Problem] = []
    rows: list[Row] = []
    for bits, peer in product(arguments.budgets, (peer for peer in PEERS if peer.name in arguments.peers)):
        keys = {"network": network, "seed": seed, "budget": bits, "peer": peer.name}
        if reason := peer.cannot.get(network):
            rows.append(with_all_figures({**keys, "cannot": reason}))
            continue
        if not (arguments.known or peer.python.exists()):
            parts.left_out.append(f"{peer.name}: make peers has made no environment {peer.environment!r}")
            continue

        def measured(bits: float = bits, peer: Peer = peer, keys: Row = keys) -> Iterator[Row]:
            if not problem:
                problem.append(loaded(network, seed, arguments))
            yield with_all_figures({**keys, **row_of(problem[0], peer, bits, seed, 60 * arguments.minutes)})

        rows += parts.rows(f"{network}-{seed}-{bits:g}-{peer.name}", measured)
    return rows


def _asked(row: Row) -> tuple[object, ...]:
    return row["network"], row["peer"], row["cannot"]


def loaded(network: str, seed: int, arguments: argparse.Namespace) -> Problem:
    """Return a network with its samples."""
    if network == "digits":
        return digits(3 * arguments.samples, seed)
    if network in TRAINED:
        return trained(TrainedNetworks(arguments.root, arguments.epochs), network, 4 * arguments.samples, seed)
    return pretrained(network, arguments.texts, arguments.samples, seed)


def print_table(rows: Sequence[Row]) -> None:
    """Print one line an answer."""
    figures = ["unseen_loss", *(key for key in FIGURES if any(row[key] is not None for row in rows))]
    console = Table(title="Losses are divergences from the float model in nats per sample")
    columns = ["network", "seed", "budget", "peer", "stored_bytes", *figures, "processor_seconds", "peak_mib"]
    for title in columns:
        console.add_column(title.replace("_", " "))
    for row in rows:
        why = row["cannot"] or row["refused"]
        shown = ["-" if row[key] is None else f"{row[key]:.4g}" for key in columns[5:]]
        console.add_row(*(str(row[key]) for key in columns[:4]), f"{row['stored_bytes'] or 0:,}", *shown)
        if why:
            console.add_row("", "", "", why)
    Console(width=200).print(console)


if __name__ == "__main__":
    main()
