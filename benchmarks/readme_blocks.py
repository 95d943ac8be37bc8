"""What README says about each benchmark, as Markdown made from its committed results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .accuracy import mean
from .figures import standard_error

Content = Mapping[str, Any]


def main_job(content: Content) -> str:
    """Return the figure and the table of the main job."""
    rows = content["results"]
    by_key = {(row["budget_bits"], row["model"]): row for row in rows}
    budgets = sorted({row["budget_bits"] for row in rows})
    base = by_key[budgets[0], "float"]
    lines = [
        "![Test accuracy and divergence against stored bytes](benchmarks/results/main_job.svg)",
        "",
        f"ResNet-20 on Fashion-MNIST, {content['settings']['epochs']} epochs, one seed, no fine-tuning, 10,000 "
        f"test images; float: {_percent(base)} in {base['stored_bytes']:,} bytes. Bytes are those of the whole model, "
        "scales and float leftovers included. One standard error of an accuracy is "
        f"{standard_error(base['test_accuracy']):.2f} points: below that, differences are noise, and the divergence "
        "from the float model (KL in nats per calibration image, after repair) tells more.",
        "",
        "| budget, average bits | chosen plan | bytes | smaller | divergence | additive plan | uniform |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for budget in budgets:
        chosen, additive, uniform = (by_key[budget, model] for model in ("chosen", "additive", "uniform"))
        lines.append(
            f"| {budget:g} | **{_percent(chosen)}** | {chosen['stored_bytes']:,} | "
            f"{base['stored_bytes'] / chosen['stored_bytes']:.1f}x | {chosen['measured_loss']:.5f} | "
            f"{_percent(additive)}, {additive['measured_loss']:.5f} | "
            f"{_percent(uniform)}, {uniform['measured_loss']:.5f} ({uniform['average_bits']:.2f} bits) |"
        )
    return "\n".join(lines)


def compression(content: Content) -> str:
    """Return the figure and a table of points lost, means over seeds."""
    rows = content["results"]
    ways = {
        "nearest, uniform": ("nearest", "uniform"),
        "nearest, full plan": ("nearest", "full"),
        "second order, additive plan": ("second_order", "additive"),
        "second order, full plan": ("second_order", "full"),
        "in sequence, full plan": ("sequential", "full"),
    }
    lines = ["![Test accuracy against stored bytes for every way](benchmarks/results/compression.svg)", ""]
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == network]
        base = [row for row in mine if row["rounding"] == "float"]
        budgets = sorted({row["budget"] for row in mine if "budget" in row})
        most = max(row["bits"] - row["budget"] for row in mine if "budget" in row)
        lines += [
            f"{network}, {len(base)} training seed{'s' * (len(base) > 1)}, float "
            f"{mean(row['accuracy'] for row in base):.2f} %: test points lost without / with repair of BatchNorm "
            f"statistics; uniform widths store up to {most:.2f} bits more, for scales",
            "",
            "| average bits | " + " | ".join(f"{budget:g}" for budget in budgets) + " |",
            "| --- |" + " ---: |" * len(budgets),
        ]
        for name, (rounding, plan) in ways.items():
            cells = []
            for budget in budgets:
                wanted = {"rounding": rounding, "plan": plan, "budget": budget}
                found = [row for row in mine if all(row.get(key) == value for key, value in wanted.items())]
                values = [[row["points_lost"] for row in found if row["repair"] is repair] for repair in (False, True)]
                cells.append(" / ".join(f"{mean(value):+.2f}" for value in values) if all(values) else "")
            if any(cells):
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def repair(content: Content) -> str:
    """Return what each repair gains, and what blocks of columns gain as candidates; means over seeds."""
    rows = content["results"]
    ways = {
        "as rounded by float inputs": (False, False),
        "repaired": (False, True),
        "rounded in sequence": (True, False),
        "in sequence and repaired": (True, True),
    }
    lines = [f"| divergence (points lost) | {' | '.join(ways)} |", "| --- |" + " ---: |" * len(ways)]
    repairs = [row for row in rows if row["compared"] == "repair"]
    for network, plan in dict.fromkeys((row["network"], row["plan"]) for row in repairs):
        mine = [row for row in repairs if (row["network"], row["plan"]) == (network, plan)]
        found = [[r for r in mine if (r["sequential"], bool(r["repaired"])) == way] for way in ways.values()]
        lines.append(f"| {network}, {plan} | {' | '.join(map(_held_out, found))} |")
    several = [row for row in rows if row["compared"] == "granularity"]
    offers = list(dict.fromkeys(row["offered"] for row in several))
    if several:
        lines += ["", f"| scales offered as candidates | {' | '.join(offers)} | groups that take blocks |"]
        lines.append("| --- |" + " ---: |" * (len(offers) + 1))
    for network, budget in dict.fromkeys((row["network"], row["budget"]) for row in several):
        mine = [row for row in several if (row["network"], row["budget"]) == (network, budget)]
        cells = [_held_out([row for row in mine if row["offered"] == offered]) for offered in offers]
        cells.append(f"{max(row['groups_in_blocks'] for row in mine)} of {mine[0]['groups']}")
        lines.append(f"| {network}, {budget:g} bits | {' | '.join(cells)} |")
    return "\n".join(lines)


def _held_out(rows: Sequence[Content]) -> str:
    if not rows:
        return ""
    divergence, lost = (mean(row["held_out"][key] for row in rows) for key in ("divergence", "points_lost"))
    return f"{divergence:.4f} ({lost:+.2f})"


def held_out(content: Content) -> str:
    """Return what pairs of layers are worth, and what follows for the number of calibration samples."""
    rows = content["results"]
    lines = [
        "| network, rounding, BatchNorm statistics | samples | "
        + " | ".join(f"{budget:g} bits" for budget in sorted({row["budget"] for row in rows}))
        + " | groups that change from draw to draw |",
        "| --- | ---: |" + " ---: |" * (len({row["budget"] for row in rows}) + 1),
    ]
    cases: dict[tuple[Any, ...], list[Content]] = {}
    for row in rows:
        cases.setdefault(tuple(row[key] for key in ("network", "rounding", "statistics", "samples")), []).append(row)
    for (network, rounding, statistics, samples), found in cases.items():
        ratios = [
            f"{row['full_over_additive']:.2f} ± {row['full_difference_error'] / row['divergence_additive']:.2f}"
            for row in sorted(found, key=lambda row: row["budget"])
        ]
        changed = f"{mean(row['groups_changed_full'] for row in found):.1f} of {found[0]['groups']}"
        what = f"{network}, {rounding.replace('_', ' ')}, {statistics}"
        lines.append(f"| {what} | {samples:,} | " + " | ".join(ratios) + f" | {changed} |")
    return "\n".join(lines)


def fidelity(content: Content) -> str:
    """Return the scatter plot and a table of rank correlations."""
    rows = [row for row in content["results"] if row["plans"] == "even"]
    cases = list(dict.fromkeys((row["rounding"], row["statistics"]) for row in rows))
    names = {
        "fisher": "Fisher, all pairs (default)",
        "fisher, shrunk": "… shrunk by its noise (what the solver gets)",
        "fisher, diagonal": "Fisher, each layer alone",
        "gauss_newton": "Gauss-Newton, all pairs",
        "secant": "secant, all pairs",
        "hessian": "Hessian of the task loss, all pairs",
        "hawq": "mean Hessian trace x squared weight error (HAWQ-V2)",
        "output_error": "squared gradient x squared output error (as Model Optimizer)",
        "gradient_error": "absolute gradient x weight error (as AutoRound)",
        "weight_error": "squared weight error",
    }
    lines = [
        "![Predicted against measured divergence of random plans](benchmarks/results/fidelity.svg)",
        "",
        "| Spearman's rank correlation; median of predicted / measured | "
        + " | ".join(f"{rounding}, {statistics}".replace("_", " ") for rounding, statistics in cases)
        + " |",
        "| --- |" + " ---: |" * len(cases),
    ]
    for name, title in names.items():
        cells = []
        for case in cases:
            found = [row for row in rows if (row["rounding"], row["statistics"]) == case and row["predictor"] == name]
            ratio = found[0]["median_ratio"] if found else None
            cells.append("" if not found else f"{found[0]['spearman']:.2f}" + (f"; {ratio:.2f}" if ratio else ""))
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def finetune(content: Content) -> str:
    """Return a table of what is lost with and without fine-tuning, means over seeds."""
    rows = content["results"]
    budgets = sorted({row["budget"] for row in rows})
    lines = [
        "| test points lost; rise of the cross-entropy (seeds) | "
        + " | ".join("every layer at 2" if budget == 2 else f"{budget:g} bits" for budget in budgets)
        + " |",
        "| --- |" + " ---: |" * len(budgets),
    ]
    for network, variant in dict.fromkeys((row["network"], row["variant"]) for row in rows):
        cells = []
        for budget in budgets:
            wanted = {"network": network, "variant": variant, "budget": budget}
            found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
            lost, risen = ([row[key] for row in found] for key in ("points_lost", "cross_entropy_change"))
            cells.append(f"{mean(lost):+.2f}; {mean(risen):+.4f} ({len(found)})" if found else "")
        lines.append(f"| {network}, {variant.replace('none', 'no fine-tuning')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def inference(content: Content) -> str:
    """Return a table of speeds over float32, least to greatest over the widths."""
    ways = {
        "bfloat16": "float model in bfloat16",
        "plain, float32": "dequantized at each call (default)",
        "fast, float32": '`memory="fast"`: dequantized once',
        "auto-round, float32": "kernel auto-round",
        "torch-int4, bfloat16": "kernel torch-int4, layer in bfloat16, up to 4 bits",
        "torch-int8, bfloat16": "kernel torch-int8, layer in bfloat16",
        "torchao IntxWeightOnlyConfig": "torchao, `IntxWeightOnlyConfig`",
        "onnxruntime": "onnxruntime on our file, inputs in 8 bits",
        "onnxruntime, float32 products": "onnxruntime on our file, inputs in float32",
    }
    rows = [row for row in content["results"] if row["way"] in ways and "over_float32" in row]
    measured = {(row["model"], row["batch"]) for row in rows}
    shown = ("linear-1024x4096", 1), ("12 x linear-1024x4096", 1), ("12 x linear-1024x4096", 64), ("resnet20", 1)
    cases = [case for case in shown if case in measured]
    lines = [
        "| times as fast as float32 | " + " | ".join(f"{model}, batch {batch}" for model, batch in cases) + " |",
        "| --- |" + " ---: |" * len(cases),
    ]
    for way, title in ways.items():
        cells = []
        for case in cases:
            found = [row["over_float32"] for row in rows if (row["model"], row["batch"]) == case and row["way"] == way]
            cells.append(f"{min(found):.2g} .. {max(found):.2g}" if found else "")
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(row: Content) -> str:
    return f"{100 * row['test_accuracy']:.2f} %"
