"""How the user's network is seen, called and left alone: layers and their weights, batches, forward passes."""
