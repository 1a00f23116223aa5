"""Import of pruned checkpoints from other tools."""
