"""How curvature is measured: one estimator a file."""
