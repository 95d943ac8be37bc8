"""Hydra configuration of the command `lightning-mpq`; other applications reach it as pkg://lightning_mpq.conf."""
