"""4 by 4 bits before and after a short fine-tuning, with ranges of inputs that stay, and that learn (LSQ)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import lightning_mpq as mpq
from lightning_mpq.pipeline.quantizer import Quantizer

from ...tools.accuracy import Images, compare, outputs
from .measuring import Row

BITS = 4
_RATE = 3e-4
"""Learning rate of Adam, which falls to zero."""


def learned(network: nn.Module, calibration: Images, training: Images, test: Images, steps: int) -> Iterator[Row]:
    """Yield a row before the fine-tuning, and one after it for each way.

    Args:
        network: A trained float network.
        calibration: Images by which it is quantized.
        training: Batches that it is trained on.
        test: Images that nothing is fitted to.
        steps: Optimizer steps.
    """
    images = [batch for batch, _ in calibration]
    groups = mpq.find_groups(network)
    candidates = mpq.make_candidates(groups, [BITS], grids=["symmetric"], inputs=[BITS])
    rounded = mpq.round_candidates(network, images, groups, candidates)
    policy = mpq.BitPolicy({candidate.group: candidate.scheme for candidate in rounded.candidates})
    reference, _ = outputs(network, test)
    before = mpq.quantize(copy.deepcopy(network), policy, images, rounded=rounded)
    yield {"way": "before", "steps": 0, **compare(before, test, reference)}
    quantizer = Quantizer(mpq.Calibration(network, images), list(policy), mpq.RepairOptions(), rounded)
    policy = quantizer.resolved(policy)
    codes, ranges = dict(quantizer.codes(policy)), quantizer.ranges(policy)
    for way, learn_ranges in (("ranges stay", False), ("ranges learn", True)):
        model = copy.deepcopy(network)
        handle = mpq.fake_quantize(model, policy, codes, ranges=ranges, learn_ranges=learn_ranges)
        _train(model, [*model.parameters(), *handle.parameters()], training, steps)
        handle.pack()
        yield {"way": way, "steps": steps, **compare(model, test, reference)}


def _train(model: nn.Module, parameters: list[nn.Parameter], batches: Images, steps: int) -> None:
    """Train, BatchNorm by the statistics of each batch, as `FinetuneOptions` has it."""
    optimizer = torch.optim.Adam(list(dict.fromkeys(parameters)), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for step in range(steps):
        images, labels = batches[step % len(batches)]
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()
