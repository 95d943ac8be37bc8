"""Layers of MiniLM in ggml's types: our rounding beside that of ggml with an importance matrix, the same bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import lightning_mpq as mpq
from lightning_mpq.network.layer_kinds import weight_rows
from lightning_mpq.network.named_weights import named_layers
from lightning_mpq.quantizers import RowRounding
from lightning_mpq.targets.ggml_blocks import bytes_of

from ...methods.ggml_library import rounded_by_ggml
from ...recorded_instances.pretrained import minilm
from ...tools.results import Row

LAYERS = ("attention.self.query", "intermediate.dense", "output.dense")
BLOCKS = (2,)


def measure(texts: Path, samples: int, held_out: int) -> list[Row]:
    """Return a row for each layer and type: the error of its output, relative to its mean square, on unseen text.

    Args:
        texts: Folder of html files.
        samples: Paragraphs to calibrate on.
        held_out: Further ones to judge by.
    """
    model, batches, _ = minilm(texts, samples + held_out)
    tokens = torch.cat(batches)
    wanted = tuple(f".{block}.{own}" for block in BLOCKS for own in LAYERS)
    names = [name for name in named_layers(model) if name.endswith(wanted)]
    inputs, more = (_inputs(model, names, part) for part in (tokens[:samples], tokens[samples:]))
    rows = []
    for name in names:
        layer = model.get_submodule(name)
        weight = weight_rows(layer).detach()
        known, unseen = inputs[name], more[name]
        moment = known.T @ known / len(known)
        target = mpq.targets.LlamaCpp()
        schemes = [scheme for scheme in target.schemes("second_order") if target.why_not(layer, scheme) is None]
        own = RowRounding(moment[None]).round(weight, schemes)
        size = float((unseen @ weight.T).square().mean())
        for scheme, found in zip(schemes, own, strict=True):
            ways = {
                "ggml": rounded_by_ggml(weight, scheme.grid, None),
                "ggml, importance": rounded_by_ggml(weight, scheme.grid, moment.diagonal().contiguous()),
                "lightning_mpq": found.quantized.dequantize(torch.float32),
            }
            errors = {way: float((unseen @ (value - weight).T).square().mean()) / size for way, value in ways.items()}
            rows.append({
                "layer": name.removeprefix("model."), "type": scheme.grid, "columns": weight.shape[1],
                "bits_a_weight": 8 * bytes_of(scheme.grid, *weight.shape) / weight.numel(),
                "error_ggml": errors["ggml"], "error_ggml_importance": errors["ggml, importance"],
                "error": errors["lightning_mpq"],
                "over_ggml": errors["lightning_mpq"] / min(errors["ggml"], errors["ggml, importance"]),
            })  # fmt: skip
    return rows


def _inputs(model: torch.nn.Module, names: list[str], tokens: Tensor) -> dict[str, Tensor]:
    """Return the inputs of layers for all tokens but padding, [tokens, columns]."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda layer, arguments, name=name: found[name].append(arguments[0])
        )
        for name in names
    ]
    with torch.no_grad():
        for part in tokens.split(16):
            model(part)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts)[tokens != 0] for name, parts in found.items()}
