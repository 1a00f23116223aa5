"""The loop of the search, children from the knapsack, and its saved state."""
