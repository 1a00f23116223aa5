"""A finished model in the form that engines read."""
