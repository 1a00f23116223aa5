"""Second moments of the gradients at the outputs of modules."""
