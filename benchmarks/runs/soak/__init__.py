"""What rough handling does: kills, interrupts and mutated files, at random moments and places."""
