"""The main job: train, then quantize at several budgets."""
