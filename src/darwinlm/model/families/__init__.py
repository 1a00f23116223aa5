"""Descriptions of model families, and access to their checkpoints."""
