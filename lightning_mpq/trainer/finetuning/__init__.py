"""Fine-tuning as phases of a fit."""
