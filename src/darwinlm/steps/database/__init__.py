"""The pruning database: every module at every level from one factorisation."""
