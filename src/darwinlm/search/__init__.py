"""Which level each module gets: budget, start, mutation, fitness, evolution."""
