"""What of the dense model a smaller one must keep, and the distance to it: one class for each kind of model."""
