"""Train networks beforehand, so that benchmarks find them.

python -m benchmarks.runs.train_networks --root DIR --networks resnet20 mobilenet --seeds 0 1 2
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from ..problems.recipes import NETWORKS
from .arguments import networks_of, parsed, parser_of


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line and train what the cache does not hold."""
    parser = parser_of("train_networks", __doc__, images=True, writes=None)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parsed(parser, words, seeds=[0])
    networks = networks_of(arguments)
    for name, seed in product(arguments.networks, arguments.seeds):
        networks.module(name, seed)


if __name__ == "__main__":
    main()
