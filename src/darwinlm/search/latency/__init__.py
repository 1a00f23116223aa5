"""Measured times of modules, for budgets in time."""
