"""What to do about noise in Taylor models of few samples, and what there is to gain by more."""
