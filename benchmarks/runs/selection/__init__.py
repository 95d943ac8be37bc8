"""What measuring the best few policies before choosing gains."""
