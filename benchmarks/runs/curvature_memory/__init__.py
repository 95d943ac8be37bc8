"""How much memory a profile takes beside training."""
