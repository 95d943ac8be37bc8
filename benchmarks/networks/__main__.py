"""Train networks beforehand, so that benchmarks find them."""

from __future__ import annotations

import argparse

from . import EPOCHS, NETWORKS, trained


def main() -> None:
    """Parse the command line and train what the cache does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="folder of the four IDX files of Fashion-MNIST")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    for name in arguments.networks:
        for seed in arguments.seeds:
            trained(name, seed, arguments.root, arguments.epochs)


if __name__ == "__main__":
    main()
