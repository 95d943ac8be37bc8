"""What a profile costs in forward passes."""
