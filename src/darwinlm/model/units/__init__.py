"""Modules of a model, their levels, allocations, and what they cost."""
