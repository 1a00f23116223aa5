"""The dense model of a run."""
