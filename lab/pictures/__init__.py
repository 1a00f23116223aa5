"""Pictures of the results page, drawn from its tables."""
