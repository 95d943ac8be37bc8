"""Other quantizers on the same weights, samples and bytes, each in an environment of its own."""
