"""The loops: descent, evolution, finalists, and their saved state."""
