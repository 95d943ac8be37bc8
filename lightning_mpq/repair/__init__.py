"""What makes up for rounding: biases and BatchNorm statistics."""
