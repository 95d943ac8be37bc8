"""Accuracy against bits without fine-tuning."""
