"""Correction of the smaller model's output projections."""
