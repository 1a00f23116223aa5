"""A vocabulary with fewer tokens."""
