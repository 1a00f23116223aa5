"""Allocations worth evaluating: the start, the level switch, solved children."""
