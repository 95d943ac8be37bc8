"""Weights and inputs decided together: accuracy, divergence, cost of the profile, and time in onnxruntime."""
