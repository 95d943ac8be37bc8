"""How far, and how fast, allocations are proved."""
