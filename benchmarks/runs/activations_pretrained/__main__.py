"""Weights and inputs of pretrained networks in one program: MiniLM and EfficientNet-Lite0, few samples.

Uniform policies, and mixed ones that take no more bit operations than W4A8, with the terms between layers and between
weights and inputs (quadratic) or without (additive); 8 by 8 bits in onnxruntime beside what its own quantizers make of
the float file. All is measured on samples that had no part in anything. Tables of embeddings stay in float.

    python -m benchmarks.runs.activations_pretrained --texts FOLDER
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ...problems.subjects import UNSEEN, Subject, subject
from ...tools.results import Row
from ...tools.selecting import having
from ...tools.targets import Target, at_most
from ..arguments import parsed, parser_of, parts_of, settings_of
from ..ending import conclude
from .measuring import deployed, measure, of_tensors, peers

NETWORKS = ("minilm", "efficientnet_lite0")
KINDS = ("policies", "peers", "deployed")


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("activations_pretrained", __doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}; default both")
    parser.add_argument("--texts", type=Path, help="folder of html files, for MiniLM")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples")
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 5, 6, 8], help="widths of weights on offer")
    parser.add_argument("--inputs", type=int, nargs="+", default=[6, 7, 8], help="widths of inputs on offer")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is measured; default all")
    parser.add_argument("--known", action="store_true", help="only collect the parts that are there")
    arguments = parsed(parser, words, networks=["made_up"], samples=64, bits=[4, 8], inputs=[8])
    if unknown := [name for name in arguments.networks if name not in UNSEEN]:
        parser.error(f"unknown network {unknown[0]!r}; expected some of {', '.join(NETWORKS)}.")
    parts = parts_of(arguments)
    policies: list[Row] = []
    files: list[Row] = []
    for name in arguments.networks:
        load = partial(subject, name, arguments.texts, arguments.samples)
        keys = {"network": name, "samples": arguments.samples}

        def measured(load: partial[Subject] = load) -> Iterator[Row]:
            torch.manual_seed(0)
            yield from measure(load(), arguments.bits, arguments.inputs)

        def of_peers(load: partial[Subject] = load) -> Iterator[Row]:
            yield from peers(of_tensors(load()))

        def written(load: partial[Subject] = load) -> Iterator[Row]:
            torch.manual_seed(0)
            yield from deployed(of_tensors(load()))

        for kind, rows, work in (
            ("policies", policies, measured), ("peers", files, of_peers), ("deployed", files, written),
        ):  # fmt: skip
            if kind in arguments.kinds:
                found = parts.rows(f"{name}-{arguments.samples}-{kind}", work)
                rows += [{**keys, **row} for row in found]
    print_table("Losses are divergences from the float model in nats per unseen sample", policies)
    print_table("8 by 8 bits in onnxruntime", files)
    reached = targets(policies, files)
    conclude(
        arguments,
        policies,
        reached,
        {**settings_of(arguments, "texts"), "skipped": parts.left_out},
        packages=("torch", "transformers", "numpy", "scipy", "mip", "highspy", "onnx", "onnxruntime"),
        deployed=files,
    )


def targets(policies: Sequence[Row], files: Sequence[Row]) -> list[Target]:
    """Return what was demanded of the rows that were measured; files are compared that are no larger by a twentieth."""
    found = []
    for name in dict.fromkeys(row["network"] for row in files):
        by_file = {row["file"]: row for row in having(files, network=name)}
        ours = [row["unseen_loss"] for row in having(policies, network=name, model="W8A8")]
        deployed = [by_file["W8A8"]["unseen_loss"]] if "W8A8" in by_file else []
        most = 1.05 * by_file["W8A8"]["bytes"] if deployed else inf
        theirs = [row for file, row in by_file.items() if file.startswith("onnxruntime")]
        own = [row["unseen_loss"] for row in theirs if row["bytes"] <= most]
        for what, measured in (("in PyTorch", ours), ("in onnxruntime", deployed)):
            if measured and own:
                title = f"loss of W8A8 {what}, onnxruntime's own best = limit, {name}"
                found.append(at_most(title, measured[0], min(own)))
    for name in dict.fromkeys(row["network"] for row in policies):
        loss = {row["model"]: row["unseen_loss"] for row in policies if row["network"] == name}
        if "W4A8" in loss:
            what = f"loss of mixed widths at the operations of W4A8, uniform = limit, {name}"
            found.append(at_most(what, loss["W4A8 BOPs, quadratic"], loss["W4A8"]))
    return found


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print one line a row."""
    table = Table(title=title)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for key in keys:
        table.add_column(key.replace("_", " "))
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v := row.get(key), float) else str(v) for key in keys))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
