"""Quantised weights of checkpoints: one file for each format, and the choice between them (`read`)."""
