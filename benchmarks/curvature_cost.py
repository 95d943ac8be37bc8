"""What a profile costs, in forward passes over the same samples, and how much memory it takes beside training.

    python -m benchmarks.curvature_cost [--networks resnet20 ...] [--output FILE]

CPU time of one thread, so that a busy machine disturbs little; the fastest of several forward passes is the unit.
Every estimator is run with all widths: fisher on ``--batches`` batches, the others, which are exact on each, on one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from benchmarks.common import Demand, write_results
from lightning_mpq.curvature import profile
from lightning_mpq.demo.resnet import ResNet
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.likelihood import Categorical

WIDTHS = tuple(range(2, 9))
VOCABULARY = 256


class Block(nn.Module):
    """A pre-norm transformer block of plain linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, T, width] to [N, T, width]."""
        normed = self.norm1(x)
        query, key, value = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A language model of 12 layers with learned positions and about 21 million weights."""

    def __init__(self, depth: int = 12, width: int = 384, heads: int = 6, length: int = 64) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token indices [N, T] to logits [N, T, vocabulary]."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.head(self.norm(self.blocks(self.token(ids) + self.position(positions))))


def network(name: str) -> tuple[nn.Module, Tensor, Tensor, Categorical]:
    """Return a network by name with one batch of inputs and targets and its likelihood."""
    torch.manual_seed(0)
    if name == "transformer12":
        ids = torch.randint(0, VOCABULARY, (8, 65))
        return Transformer().eval(), ids[:, :-1], ids[:, 1:], Categorical(class_dim=-1)
    model = ResNet(depth=int(name.removeprefix("resnet"))).eval()
    return model, torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,)), Categorical()


ESTIMATORS = ("fisher", "secant", "gauss_newton", "hessian")
NETWORKS = ("resnet20", "resnet56", "resnet110", "transformer12")


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Return the CPU time that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(name: str, batches: int, estimators: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row for each estimator on one network."""
    model, inputs, targets, likelihood = network(name)
    data = [(inputs.roll(shift, 0), targets.roll(shift, 0)) for shift in range(batches)]

    def loss_fn(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(net(batch[0]).flatten(0, -2), batch[1].flatten())

    def forward() -> float:
        with torch.no_grad():
            return min(cpu_seconds(lambda: model(inputs)) for _ in range(3))

    layers = len(find_groups(model))
    rows = []
    for estimator in estimators:
        used = data if estimator == "fisher" else data[:1]
        options: dict[str, Any] = {"curvature": estimator, "bits": WIDTHS, "likelihood": likelihood, "loss_fn": loss_fn}
        before = forward()
        spent = cpu_seconds(lambda used=used, options=options: profile(model, used, **options))  # type: ignore[misc]
        unit = (before + forward()) / 2  # the clock of a shared machine drifts
        forwards = spent / unit / len(used)
        candidates = layers * len(WIDTHS)
        rows.append(
            {
                "network": name,
                "layers": layers,
                "candidates": candidates,
                "estimator": estimator,
                "samples": len(used) * len(inputs),
                "forward_seconds": unit,
                "forwards": forwards,
                "forwards_per_candidate": None if estimator == "fisher" else forwards / candidates,
                "pairwise_forwards": candidates**2 // 2,
            }
        )
    return rows


def peak_bytes(what: str) -> int:
    """Run a training step or a fisher profile of the transformer in its own process; return its peak memory."""
    command = [sys.executable, "-m", "benchmarks.curvature_cost", "--peak", what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def run_alone(what: str) -> None:
    """Do one thing and print the peak memory of this process in bytes."""
    if what == "nothing":  # the interpreter and its libraries, taken off the other two
        print(_high_water_mark())
        return
    model, inputs, targets, likelihood = network("transformer12")
    if what == "fisher":
        profile(model, [inputs], likelihood=likelihood, bits=WIDTHS)
    else:
        optimizer = torch.optim.AdamW(model.train().parameters())
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
            optimizer.step()
    print(_high_water_mark())


def _high_water_mark() -> int:
    """Return the peak memory of this process in bytes (Linux; ru_maxrss would count the parent's as well)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def demands_of(rows: Sequence[dict[str, Any]]) -> list[Demand]:
    """Return the demanded figures that these rows can answer."""
    cost = {(row["network"], row["estimator"]): row for row in rows}
    found = []
    for (name, estimator), row in cost.items():
        if estimator == "fisher":
            value = round(row["forwards"], 2)
            found.append(Demand(f"fisher, {name}, 7 widths, forward passes", "<= 10", value, value <= 10))
        elif estimator in ("gauss_newton", "hessian"):
            bound = {"gauss_newton": 1.2, "hessian": 6.0}[estimator]
            value = round(row["forwards_per_candidate"], 2)
            found.append(Demand(f"{estimator}, {name}, forward passes / K", f"<= {bound}", value, value <= bound))
    if {("resnet20", "fisher"), ("resnet110", "fisher")} <= set(cost):
        ratio = round(cost["resnet110", "fisher"]["forwards"] / cost["resnet20", "fisher"]["forwards"], 3)
        met = 0.75 <= ratio <= 1.25
        found.append(Demand("fisher, forward passes at 110 / at 20 layers", "0.75 .. 1.25", ratio, met))
    return found


def write_memory(output: Path | None) -> None:
    """Measure peak memory, each in a process of its own, and write the result file."""
    memory = {kind: peak_bytes(kind) for kind in ("nothing", "training", "fisher")}
    base = memory["nothing"]
    ratio = round((memory["fisher"] - base) / (memory["training"] - base), 3)
    demand = Demand("fisher / AdamW step, peak memory, transformer12", "<= 1.5", ratio, ratio <= 1.5)
    print(memory, demand)
    write_results(
        "curvature_cost-memory", settings={"widths": WIDTHS}, results=[memory], demands=[demand], output=output
    )


def main() -> None:
    """Measure, print a table and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument(
        "--all-estimators-on",
        nargs="*",
        choices=NETWORKS,
        default=list(NETWORKS),
        help="networks for the estimators whose cost grows with K too (minutes each on the larger ones)",
    )
    parser.add_argument("--batches", type=int, default=4, help="batches for fisher; the others take one")
    parser.add_argument("--output", type=Path, help="result file; default benchmarks/results/curvature_cost.json")
    parser.add_argument("--memory", action="store_true", help="only peak memory; written to curvature_cost-memory.json")
    parser.add_argument("--peak", choices=("nothing", "training", "fisher"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        run_alone(arguments.peak)
        return
    if arguments.memory:
        write_memory(arguments.output)
        return
    everything = set(arguments.all_estimators_on)
    plan = {name: ESTIMATORS if name in everything else ESTIMATORS[:1] for name in arguments.networks}
    rows = [row for name, estimators in plan.items() for row in measure(name, arguments.batches, estimators)]
    demands = demands_of(rows)
    table = Table("network", "estimator", "K", "forward passes", "per candidate", "pairwise method")
    for row in rows:
        each = row["forwards_per_candidate"]
        cells = (row["network"], row["estimator"], row["candidates"], f"{row['forwards']:.1f}")
        table.add_row(*map(str, cells), f"{each:.2f}" if each else "", str(row["pairwise_forwards"]))
    Console().print(table)
    for demand in demands:
        print(f"{'met    ' if demand.met else 'NOT MET'} {demand.name}: {demand.measured} (demanded {demand.demanded})")
    settings = {
        "batches": arguments.batches,
        "widths": WIDTHS,
        "clock": "CPU time, one thread",
        "skipped": [f"all but fisher on {name}" for name in plan if name not in everything],
    }
    write_results("curvature_cost", settings=settings, results=rows, demands=demands, output=arguments.output)


if __name__ == "__main__":
    main()
