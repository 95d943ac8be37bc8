"""What is compared: our own steps, and what others do in their place."""
