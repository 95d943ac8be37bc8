"""Trainer checkpoints of packed models."""
