"""``python -m lightning_mpq.cli``."""

from .main import main

main()
