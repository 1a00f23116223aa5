"""The search for an allocation: budget, first parent, mutation, fitness, evolution."""
