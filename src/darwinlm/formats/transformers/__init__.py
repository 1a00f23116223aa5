"""Folders of transformers: saved models, and published checkpoints."""
