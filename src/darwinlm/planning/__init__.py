"""What a run will need, before it runs and without weights."""
