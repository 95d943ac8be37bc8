"""The integer program on plain arrays."""
