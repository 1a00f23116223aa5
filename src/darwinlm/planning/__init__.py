"""Predicted memory, disk and time of a run, without weights."""
