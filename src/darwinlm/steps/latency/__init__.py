"""Times of modules, for budgets in time."""
