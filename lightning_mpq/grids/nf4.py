"""NormalFloat: sixteen levels at quantiles of a normal distribution.

T. Dettmers, A. Pagnoni, A. Holtzman, L. Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023,
arXiv:2305.14314, section 3 and appendix E, which lists the values. There a scale belongs to a block of 64 weights.
"""

from __future__ import annotations

from .table import TableGrid


class NormalFloat4(TableGrid):
    """Levels for weights that are normally distributed; zero is one of them."""

    name = "nf4"
    bits = (4,)
    table = (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    )
