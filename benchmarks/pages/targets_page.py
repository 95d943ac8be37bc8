"""Every figure that something was meant to reach beside the one that was measured, as a Markdown page."""

from __future__ import annotations

from pathlib import Path

from ..tools.results import RESULTS, Content, read_results
from ..tools.selecting import Rows
from ..tools.targets import ORIGINS

_HEAD = """# Targets and measurements

Written by `python -m benchmarks.pages` from the result files beside this page. Each file also has the measurements that
have no target.

Whose bounds these are: this project's own. Its issues set them; none is quoted from a paper or from another tool. The
last column says which kind it is:
"""
_PEERS = """
Other tools and published methods appear in results as measurements too, made by us on the machine that is named: SCIP
and CP-SAT (`allocation`), torchao (`finetune_torchao`, `inference`), onnxruntime (`inference`), and scores written from
their publications (`fidelity`).

Words: the *quadratic* policy minimises the predicted loss with the terms of all pairs of layers, the *additive* one
that of each layer alone. *Even* policies draw every width evenly from 2 to 8 bits, *ranged* ones from a range that is
drawn for each policy. *K* is the number of candidates, (layer, width) pairs. *Times float32* compares with PyTorch's
own float32 layer in the same run. McNemar's test asks whether one model is right on more images than another by more
than chance.
"""


def targets_page(folder: Path = RESULTS) -> str:
    """Return the page of all result files in a folder."""
    kinds = "\n".join(f"- **{origin}**: {meaning}." for origin, meaning in ORIGINS.items())
    sections = [_section(path.stem, read_results(path.stem, folder)) for path in sorted(folder.glob("*.json"))]
    return "\n".join([_HEAD, kinds, _PEERS, *sections])


def _section(name: str, content: Content) -> str:
    where, targets = content["environment"], content["targets"]
    lines = [
        f"## {name}",
        "",
        f"`{name}.json`, {where['date'][:10]}, {where['cpu']}, {where['cores']} cores, "
        f"{where['torch_threads']} torch threads, torch {where['packages']['torch']}.",
        "",
        *(_table(targets) if targets else ["No targets: it compares, and nothing was to be reached."]),
        "",
    ]
    return "\n".join(lines)


def _table(targets: Rows) -> list[str]:
    lines = ["| what | bound | measured | met | whose |", "| --- | --- | --- | --- | --- |"]
    for target in targets:
        measured = target["measured"]
        shown = f"{measured:.4g}" if isinstance(measured, float) else str(measured)
        met = "yes" if target["met"] else "**no**"
        lines.append(f"| {target['name']} | {target['bound']} | {shown} | {met} | {target['origin']} |")
    return lines
