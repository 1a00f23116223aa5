"""What model families look like, and their checkpoints as blocks."""
