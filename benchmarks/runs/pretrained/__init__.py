"""What becomes of pretrained networks that are quantized on few samples."""
