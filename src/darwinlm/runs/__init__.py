"""Runs that are more than the stages in order: several sizes, several rounds, recovery alone."""
