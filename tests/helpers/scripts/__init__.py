"""Scripts that become two processes under DDP; tests start them as a user would."""
