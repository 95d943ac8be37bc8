"""What pairs of layers are worth on images that no policy has seen."""
