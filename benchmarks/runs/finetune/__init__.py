"""What fine-tuning after quantization gives back."""
