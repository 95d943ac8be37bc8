"""Calibration batches to rounded weights, layer by layer or in sequence."""
