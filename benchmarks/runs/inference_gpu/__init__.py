"""How fast packed Linear layers run on a GPU."""
