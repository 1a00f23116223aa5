"""Inference engines, each in a separate process, so that a crash doesn't affect the caller."""
