"""Inputs of layers: where they are seen, which range each gets, and their quantization."""
