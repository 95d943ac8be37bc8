"""Weights and inputs of pretrained networks decided together, beside onnxruntime's own quantizers."""
