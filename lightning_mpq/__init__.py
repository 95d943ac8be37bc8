"""Mixed-precision quantization for PyTorch Lightning in which the loss decides the bits."""
