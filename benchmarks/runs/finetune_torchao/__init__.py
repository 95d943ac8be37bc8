"""Our fine-tuning beside torchao's quantization-aware training."""
