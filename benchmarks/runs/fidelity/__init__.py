"""How well each estimator predicts the loss of random policies."""
