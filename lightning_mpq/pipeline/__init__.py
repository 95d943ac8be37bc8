"""The whole job on a trained model: measure, allocate, select, quantize, repair, compare."""
