"""Modules and models made physically smaller."""
