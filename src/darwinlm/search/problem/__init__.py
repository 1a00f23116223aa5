"""What a search is about: the space of allocations, their cost, and the knapsack."""
