"""Evaluation of allocations: modules in place, the dense model's distributions, KL, training of candidates."""
