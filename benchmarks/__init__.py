"""Measurements behind the figures of the README; run one with ``python -m benchmarks.NAME --help``."""
