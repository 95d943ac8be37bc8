"""The search for grids and ranges of weights beside one that solves for every range."""
