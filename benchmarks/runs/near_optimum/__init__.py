"""Policies near the optimum beside each other."""
