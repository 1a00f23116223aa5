"""Perplexity, KL and speed of a model."""
