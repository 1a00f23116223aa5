"""Figures of every model on held-out text."""
