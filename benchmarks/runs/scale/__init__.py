"""How memory and time grow with a language model."""
