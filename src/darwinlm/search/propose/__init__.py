"""Proposals for evaluation: the first parent, the level switch, children from the knapsack."""
