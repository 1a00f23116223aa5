"""The loop of the search, and its saved state."""
