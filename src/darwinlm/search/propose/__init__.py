"""Proposals for evaluation: the first parent and the level switch."""
