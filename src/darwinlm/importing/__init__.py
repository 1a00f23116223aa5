"""Other tools' pruned checkpoints, converted into this package's layout."""

from darwinlm.importing.convert import import_model

__all__ = ["import_model"]
