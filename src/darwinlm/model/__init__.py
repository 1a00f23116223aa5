"""Language models: families as data, checkpoints, the walk over blocks, and the sizes of their modules."""
