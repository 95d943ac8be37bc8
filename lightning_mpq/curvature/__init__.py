"""Candidates and calibration batches in, a Taylor model of the loss out."""
