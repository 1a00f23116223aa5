"""Cutting modules of a model to smaller sizes."""
