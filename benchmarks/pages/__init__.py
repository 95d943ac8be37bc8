"""Figures and tables of README and documentation, written from the committed results."""
