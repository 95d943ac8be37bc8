"""A package, so that other processes find functions of test modules by name."""
