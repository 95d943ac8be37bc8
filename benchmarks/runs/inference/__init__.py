"""How fast and how small packed models run."""
