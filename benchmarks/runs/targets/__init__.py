"""Files of targets beside those of each runtime's own quantizer."""
