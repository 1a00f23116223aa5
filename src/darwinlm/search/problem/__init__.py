"""The search problem: the space of allocations, their cost, the budget, and the knapsack."""
