"""What is decided together, and what may be chosen."""
