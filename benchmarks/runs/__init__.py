"""The commands: ``python -m benchmarks.runs.NAME --help``."""
