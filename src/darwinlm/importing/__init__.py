"""Import of pruned checkpoints from other tools."""

from darwinlm.importing.convert import import_model

__all__ = ["import_model"]
